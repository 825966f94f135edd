"""The table of backends: a name, the module that runs graphs with it, and the package it needs. One row a backend."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from typing import Protocol, cast

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, MissingExtraError
from edgevqa.runtime.manifest import Manifest, Numerics
from edgevqa.runtime.sessions.base import Session, SessionOptions
from edgevqa.runtime.targets import TARGETS, Flavour

BACKEND_VARIABLE = "EDGEVQA_BACKEND"


class BackendModule(Protocol):
    """What a backend's module defines."""

    def open_session(self, bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> Session:
        """Load one graph of the bundle. The caller closes the session."""
        ...


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """`module` is imported when a session is opened; `package` is what it needs and `extra` installs it.

    `distributions` are the names under which the package is installed, and `likes` the INT8 and FP8 numerics that it
    runs, those that run best first. Some runs engines of a `flavour`, which a bundle must have, in place of ONNX graphs;
    its `package` may have `stand_ins` that run them too.
    """

    name: str
    module: str
    package: str
    extra: str
    distributions: tuple[str, ...]
    likes: tuple[Numerics, ...]
    flavour: Flavour | None = None
    stand_ins: tuple[str, ...] = ()

    def installed(self) -> bool:
        """Whether `package` can be imported here; nothing is imported."""
        return any(importlib.util.find_spec(name) is not None for name in (self.package, *self.stand_ins))

    def can_run(self, manifest: Manifest) -> bool:
        """Whether a bundle has what it runs: graphs always, engines where they were built."""
        return self.flavour is None or any(self._runs(entry.target) for entry in manifest.engines.values())

    def variants_of(self, manifest: Manifest) -> list[str]:
        """The variants that it can run: those with engines, where it needs some."""
        if self.flavour is None or not self.can_run(manifest):
            return list(manifest.variants)
        built = {entry.variant for entry in manifest.engines.values() if self._runs(entry.target)}
        return [name for name in manifest.variants if name in built]

    def _runs(self, target: str) -> bool:
        return target in TARGETS and TARGETS[target].flavour == self.flavour

    def version(self) -> str:
        """The installed version, "unknown" where the package does not say; nothing is imported."""
        for distribution in self.distributions:
            with suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(distribution)
        return "unknown"


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    row.name: row
    for row in (
        Backend(
            name="onnxruntime",
            module="edgevqa.runtime.sessions.ort",
            package="onnxruntime",
            extra="cpu",
            distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn"),
            likes=("u8-fp32", "s8-fp32", "fp8-fp16", "s8-fp16"),
        ),
        Backend(
            name="openvino",
            module="edgevqa.runtime.sessions.ov",
            package="openvino",
            extra="openvino",
            distributions=("openvino",),
            likes=("s8-fp32", "u8-fp32", "s8-fp16"),
        ),
        Backend(
            name="tensorrt",
            module="edgevqa.runtime.sessions.trt.standard",
            package="tensorrt",
            extra="tensorrt",
            distributions=("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
            likes=("s8-fp16", "fp8-fp16"),
            flavour="tensorrt",
            stand_ins=("tensorrt_lean", "tensorrt_dispatch"),
        ),
        Backend(
            name="tensorrt-rtx",
            module="edgevqa.runtime.sessions.trt.rtx",
            package="tensorrt_rtx",
            extra="tensorrt-rtx",
            distributions=("tensorrt_rtx",),
            likes=("s8-fp16", "fp8-fp16"),
            flavour="tensorrt-rtx",
        ),
    )
}


def split_backend(text: str) -> tuple[str, dict[str, str]]:
    """`tensorrt,projector=onnxruntime` as the backend, and those of single graphs. Raises `ConfigError`."""
    main, *others = (part.strip() for part in text.split(","))
    pairs = [other.partition("=") for other in others]
    if not all(graph.strip() and backend.strip() in BACKENDS for graph, _, backend in pairs):
        raise ConfigError(
            f"Unknown backend '{text}'; expected a backend, and then GRAPH=BACKEND for graphs with another, such as "
            f"'tensorrt,projector=onnxruntime'. Backends are {', '.join(BACKENDS)}."
        )
    return main, {graph.strip(): backend.strip() for graph, _, backend in pairs}


def possible_backends(name: str = "auto") -> list[Backend]:
    """The backend called `name`, or for "auto" all that are installed, in the table's order.

    `EDGEVQA_BACKEND` says what "auto" is, where it is set. Raises `ConfigError` for an unknown name and
    `MissingExtraError` when the package, or for "auto" every package, is not installed.
    """
    source = ""
    name, others = split_backend(name)
    for other in others.values():
        if not BACKENDS[other].installed():
            raise MissingExtraError(BACKENDS[other].package, BACKENDS[other].extra, "Running a model")
    if name == "auto" and os.environ.get(BACKEND_VARIABLE):
        name, source = os.environ[BACKEND_VARIABLE], f" (from {BACKEND_VARIABLE})"
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(f"Unknown backend '{name}'{source}; expected auto, {', '.join(BACKENDS)}.")
    rows = list(BACKENDS.values()) if name == "auto" else [BACKENDS[name]]
    installed = [row for row in rows if row.installed()]
    if not installed:
        raise MissingExtraError(rows[0].package, rows[0].extra, "Running a model")
    return installed


def choose_backend(name: str = "auto") -> Backend:
    """The first of `possible_backends`: what runs a graph where there is no bundle to measure with."""
    return possible_backends(name)[0]


def open_session(
    bundle: Bundle, variant: str, graph: str, *, backend: str = "auto", options: SessionOptions | None = None
) -> Session:
    """Load one graph of a bundle with a backend; the caller closes the session."""
    chosen = choose_backend(backend)
    module = cast("BackendModule", importlib.import_module(chosen.module))
    return module.open_session(bundle, variant, graph, options or SessionOptions())
