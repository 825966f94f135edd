"""Graphs of which one at a time is loaded: checking a bundle then needs the memory of its largest graph, not of all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor


def one_at_a_time(
    bundle: Bundle, variant: str, *, backend: str = "onnxruntime", options: SessionOptions | None = None
) -> Graphs:
    """The variant's graphs; running one closes the one that ran before, unless it is the same.

    Slow where graphs alternate, and right for batches: a batch runs each graph in turn, and the decoder many times.
    """
    slot = _Slot(bundle, variant, backend, options or SessionOptions())
    specs = bundle.variant(variant).graphs
    return Graphs(
        {name: _Transient(slot, name, spec.inputs, spec.outputs) for name, spec in specs.items()}, Statistics()
    )


class _Slot:
    """The place for the one session that is open."""

    def __init__(self, bundle: Bundle, variant: str, backend: str, options: SessionOptions) -> None:
        self._bundle, self._variant, self._backend, self._options = bundle, variant, backend, options
        self._name = ""
        self._session: Session | None = None

    def get(self, name: str) -> Session:
        """The session of a graph; another one is closed first."""
        if self._session is None or self._name != name:
            self.close()
            self._session = open_session(
                self._bundle, self._variant, name, backend=self._backend, options=self._options
            )
            self._name = name
        return self._session

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Transient(AbstractContextManager["_Transient"]):
    """A graph that is loaded when it runs."""

    def __init__(self, slot: _Slot, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._slot, self._name = slot, name

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        return self._slot.get(self._name).run(inputs)

    def close(self) -> None:
        self._slot.close()

    def __enter__(self) -> _Transient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
