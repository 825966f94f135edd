"""The table of backends: a name, the module that runs graphs with it, and the package it needs. One row a backend."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol, cast

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, MissingExtraError
from edgevqa.runtime.sessions.base import Session, SessionOptions


class BackendModule(Protocol):
    """What a backend's module defines."""

    def open_session(self, bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> Session:
        """Load one graph of the bundle. The caller closes the session."""
        ...


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """`module` is imported when a session is opened; `package` is what it needs and `extra` installs it."""

    name: str
    module: str
    package: str
    extra: str

    def installed(self) -> bool:
        """Whether `package` can be imported here; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    row.name: row
    for row in (Backend(name="onnxruntime", module="edgevqa.runtime.sessions.ort", package="onnxruntime", extra="cpu"),)
}


def choose_backend(name: str = "auto") -> Backend:
    """The backend called `name`, or for "auto" the first of the table that is installed.

    Raises `ConfigError` for an unknown name and `MissingExtraError` when its package is not installed.
    """
    if name == "auto":
        rows = list(BACKENDS.values())
        chosen = next((row for row in rows if row.installed()), rows[0])
    elif name in BACKENDS:
        chosen = BACKENDS[name]
    else:
        raise ConfigError(f"Unknown backend '{name}'; expected auto, {', '.join(BACKENDS)}.")
    if not chosen.installed():
        raise MissingExtraError(chosen.package, chosen.extra, "Running a model")
    return chosen


def open_session(
    bundle: Bundle, variant: str, graph: str, *, backend: str = "auto", options: SessionOptions | None = None
) -> Session:
    """Load one graph of a bundle with a backend; the caller closes the session."""
    chosen = choose_backend(backend)
    module = cast("BackendModule", importlib.import_module(chosen.module))
    return module.open_session(bundle, variant, graph, options or SessionOptions())
