"""The graphs of one variant, loaded with one backend: run by name, counted and timed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.errors import BundleError, ConfigError, InputError
from edgevqa.runtime.manifest import Manifest, TensorSpec
from edgevqa.runtime.sessions import BACKENDS, choose_backend, open_session, split_backend
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor, wait_for


class Graphs:
    """Owns one session a graph; a context manager."""

    def __init__(self, sessions: Mapping[str, Session], statistics: Statistics) -> None:
        self.sessions = dict(sessions)
        self._inputs = {name: {spec.name: spec for spec in each.inputs} for name, each in sessions.items()}
        self.statistics = statistics
        self._waits = False

    @classmethod
    def load(cls, bundle: Bundle, variant: str, backend: str, options: SessionOptions) -> Graphs:
        """Load every graph of the variant; when one fails, those already loaded are closed.

        `backend` may name others for single graphs: `tensorrt,projector=onnxruntime`; `options.provider_options` are
        not for those. Raises `ConfigError` for a graph that the variant lacks.
        """
        places = backends_by_graph(bundle, variant, backend)
        main = choose_backend(backend).name
        read = [name for name, place in places.items() if BACKENDS[place].flavour is None]
        if read:  # engines hold the weights themselves
            bundle.require_files(variant, read)
        sessions: dict[str, Session] = {}
        with ExitStack() as stack:
            for name, place in places.items():
                own = options if place == main else msgspec.structs.replace(options, provider_options={})
                session = open_session(bundle, variant, name, backend=place, options=own)
                sessions[name] = stack.enter_context(session)
            stack.pop_all()
        return cls(sessions, Statistics())

    def __contains__(self, name: str) -> bool:
        return name in self.sessions

    def run(self, name: str, inputs: Mapping[str, Tensor | Array], *, stage: str | None = None) -> dict[str, Tensor]:
        """Run a graph; the outputs belong to the caller. The time counts as that of `stage`, or of the graph.

        Engines return when the GPU has its work: outside of `waiting`, the time that the GPU takes is that of who reads.
        """
        with self.statistics.timed(stage or name):
            outputs = self.sessions[name].run(inputs)
            if self._waits:
                wait_for(outputs)
        return outputs

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Let every run end with the device's work, by reading its smallest output: then graphs' own times are true."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def inputs(self, graph: str) -> Mapping[str, TensorSpec]:
        """The specifications of a graph's inputs, by name."""
        return self._inputs[graph]

    def input(self, graph: str, name: str) -> TensorSpec:
        """The specification of a graph's input. Raises `BundleError` where there is none of that name."""
        found = self._inputs[graph].get(name)
        if found is not None:
            return found
        raise BundleError(f"Graph '{graph}' has no input '{name}'. Export the bundle again.")

    def require(self, names: tuple[str, ...]) -> None:
        """Raise `BundleError` that names the missing graphs, if any."""
        missing = [name for name in names if name not in self.sessions]
        if missing:
            raise BundleError(
                f"The bundle has no graph {', '.join(missing)}; it has {', '.join(self.sessions)}. Export it again."
            )

    def require_outputs(self, names: Iterable[str]) -> None:
        """Raise `BundleError` that names the values which no graph gives, if any."""
        given = {spec.name for session in self.sessions.values() for spec in session.outputs}
        missing = [name for name in names if name not in given]
        if missing:
            raise BundleError(f"No graph of the bundle gives {', '.join(missing)}. Export it again.")

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions.values():
            session.close()


def backends_by_graph(bundle: Bundle, variant: str, backend: str) -> dict[str, str]:
    """The backend of every graph. Raises `ConfigError` for a graph that the variant lacks."""
    graphs = bundle.variant(variant).graphs
    _, others = split_backend(backend)
    unknown = sorted(set(others) - set(graphs))
    if unknown:
        raise ConfigError(
            f"--backend names the graph {', '.join(unknown)}; variant '{variant}' has {', '.join(graphs)}."
        )
    main = choose_backend(backend).name
    return {name: others.get(name, main) for name in graphs}


def choose_variant(manifest: Manifest, precision: str | None, backend: str) -> str:
    """The variant called `precision`; else, of those of that precision, the one whose numerics `backend` likes best.

    Those with weight-only or float graphs go by their own names, and serve a precision only where there is no other. For
    None it is fp32, or the first variant there is. Numerics that the backend does not list come last, in the manifest's
    order. A backend that runs engines takes a variant that has some, where there is one. Raises `InputError` naming the
    variants of the bundle.
    """
    if not manifest.variants:
        raise ConfigError("The bundle has no variant, so there is nothing to run. Export it again.")
    row = BACKENDS.get(backend)
    possible = list(manifest.variants) if row is None else row.variants_of(manifest)
    if precision is None:
        precision = "fp32"
        if not any(manifest.variants[name].precision == precision for name in possible):
            return possible[0]
    if precision in manifest.variants and (
        precision in possible or precision != manifest.variants[precision].precision
    ):
        return precision
    order = {numerics: place for place, numerics in enumerate(() if row is None else row.likes)}
    found = [name for name in possible if manifest.variants[name].precision == precision]
    found = found or [name for name, spec in manifest.variants.items() if spec.precision == precision]
    if not found:
        raise InputError(
            f"The bundle has no variant '{precision}'; it has {', '.join(manifest.variants)}. Choose one of these."
        )
    variants = manifest.variants
    return min(found, key=lambda name: (not variants[name].is_usual, order.get(variants[name].numerics, len(order))))
