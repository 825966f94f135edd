"""The graphs of one variant, loaded with one backend: run by name, counted and timed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.errors import BundleError, ConfigError, InputError
from edgevqa.runtime.manifest import Manifest, TensorSpec
from edgevqa.runtime.sessions import choose_backend, open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor


class Graphs:
    """Owns one session a graph; a context manager."""

    def __init__(self, sessions: Mapping[str, Session], statistics: Statistics) -> None:
        self.sessions = dict(sessions)
        self.statistics = statistics

    @classmethod
    def load(cls, bundle: Bundle, variant: str, backend: str, options: SessionOptions) -> Graphs:
        """Load every graph of the variant; when one fails, those already loaded are closed."""
        bundle.require_files(variant)
        chosen = choose_backend(backend).name
        sessions: dict[str, Session] = {}
        with ExitStack() as stack:
            for name in bundle.variant(variant).graphs:
                session = open_session(bundle, variant, name, backend=chosen, options=options)
                sessions[name] = stack.enter_context(session)
            stack.pop_all()
        return cls(sessions, Statistics())

    def __contains__(self, name: str) -> bool:
        return name in self.sessions

    def run(self, name: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run a graph; the outputs belong to the caller."""
        with self.statistics.timed(name):
            return self.sessions[name].run(inputs)

    def input(self, graph: str, name: str) -> TensorSpec:
        """The specification of a graph's input. Raises `BundleError` where there is none of that name."""
        for spec in self.sessions[graph].inputs:
            if spec.name == name:
                return spec
        raise BundleError(f"Graph '{graph}' has no input '{name}'. Export the bundle again.")

    def require(self, names: tuple[str, ...]) -> None:
        """Raise `BundleError` that names the missing graphs, if any."""
        missing = [name for name in names if name not in self.sessions]
        if missing:
            raise BundleError(
                f"The bundle has no graph {', '.join(missing)}; it has {', '.join(self.sessions)}. Export it again."
            )

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions.values():
            session.close()


def choose_variant(manifest: Manifest, precision: str | None) -> str:
    """The variant called `precision`, else the first of that precision; for None fp32, else the first there is.

    Raises `InputError` naming the variants of the bundle.
    """
    if not manifest.variants:
        raise ConfigError("The bundle has no variant, so there is nothing to run. Export it again.")
    if precision is None:
        precision = "fp32"
        if not any(spec.precision == precision for spec in manifest.variants.values()):
            return next(iter(manifest.variants))
    if precision in manifest.variants:
        return precision
    for name, spec in manifest.variants.items():
        if spec.precision == precision:
            return name
    raise InputError(
        f"The bundle has no variant '{precision}'; it has {', '.join(manifest.variants)}. Choose one of these."
    )
