"""Candidates of a search at work: graphs are written and loaded one at a time, what did not change is used again."""

from __future__ import annotations

import hashlib
import math
import secrets
import tempfile
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import onnx_ir as ir

from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import FileSpec, TensorSpec, VariantSpec
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor

FLOAT = "fp32"
DECODER = "language_decoder"
MEMO_BYTES = 512 << 20

State: TypeAlias = "tuple[str, frozenset[str] | None]"
"""A graph and which of its layers are quantised; None is the bundle's own float graph."""


class WritesGraphs(Protocol):
    """The part of `Quantizer` that makes candidates."""

    def write_graph(self, weights: SharedWeights, path: Path, graph: str, high: Collection[str] = ()) -> object: ...


class Memo:
    """What graphs gave for the very same inputs, up to `max_bytes`; when it is full nothing more is kept.

    Exact: an entry is found by graph state and the bytes of every input. What was kept first stays, since a search
    reads its samples in one order again and again, where dropping the oldest would never hit.
    """

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.hits = 0
        self._kept: dict[tuple[State, bytes], dict[str, Tensor]] = {}

    def get(self, state: State, digest: bytes) -> dict[str, Tensor] | None:
        found = self._kept.get((state, digest))
        self.hits += found is not None
        return found

    def put(self, state: State, digest: bytes, outputs: dict[str, Tensor]) -> None:
        size_bytes = sum(8 * math.prod(tensor.shape) for tensor in outputs.values())
        if self.size_bytes + size_bytes <= self.max_bytes:
            self._kept[state, digest] = outputs
            self.size_bytes += size_bytes

    def forget(self, keep: Callable[[State], bool]) -> None:
        """Drop the entries of all states but those to keep."""
        self._kept = {key: outputs for key, outputs in self._kept.items() if keep(key[0])}
        self.size_bytes = sum(
            8 * math.prod(tensor.shape) for outputs in self._kept.values() for tensor in outputs.values()
        )


class RememberingSession:
    """A session that asks the memo before it runs. It does not own the session: closing it changes nothing."""

    def __init__(self, session: Session, memo: Memo, state: State) -> None:
        self.inputs: list[TensorSpec] = session.inputs
        self.outputs: list[TensorSpec] = session.outputs
        self._session, self._memo, self._state = session, memo, state

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        digest = _digest(inputs)
        outputs = self._memo.get(self._state, digest)
        if outputs is None:
            outputs = self._session.run(inputs)
            self._memo.put(self._state, digest, outputs)
        return dict(outputs)

    def close(self) -> None:
        pass

    def __enter__(self) -> RememberingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Candidates:
    """Makes a pipeline of any choice of quantised layers. A context manager that owns sessions and a scratch folder.

    `layers` are the quantisable layers of every graph, by graph. Graphs whose state a search comes back to (float, and
    all quantised) stay loaded; any other is closed and its file removed when the next candidate does without it.
    """

    def __init__(
        self,
        bundle: Bundle,
        layers: Mapping[str, frozenset[str]],
        quantizer: WritesGraphs,
        options: PipelineOptions,
    ) -> None:
        """`options`: backend, threads and batch; `precision` is not looked at."""
        self.bundle = bundle
        self.layers = {graph: layers.get(graph, frozenset()) for graph in bundle.variant(FLOAT).graphs}
        self.memo = Memo()
        self._quantizer = quantizer
        self._options = options
        self._session_options = SessionOptions(threads=options.threads, provider_options=options.provider_options)
        self._candidate_options = _without_cache(self._session_options, options.backend)
        self._sessions: dict[State, Session] = {}
        self._stack = ExitStack()
        self._folder = Path()
        self._weights: SharedWeights | None = None
        self._written = 0

    @property
    def backend(self) -> str:
        return self._options.backend

    @property
    def all_layers(self) -> frozenset[str]:
        return frozenset[str]().union(*self.layers.values())

    def __enter__(self) -> Candidates:
        scratch = cache_dir() / "candidates"
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
        self._weights = self._stack.enter_context(SharedWeights(self._folder / "weights.data"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_but(())
        self._stack.close()

    def float_states(self) -> list[State]:
        """The float model."""
        return [(graph, None) for graph in self.layers]

    def only(self, quantised: frozenset[str]) -> list[State]:
        """The float model with a few layers quantised: graphs without one are the bundle's own."""
        return [(graph, (layers & quantised) or None) for graph, layers in self.layers.items()]

    def mixed(self, quantised: frozenset[str]) -> list[State]:
        """All graphs as they would be written with these layers quantised."""
        return [(graph, layers & quantised) for graph, layers in self.layers.items()]

    def forget_but(self, states: Literal["float", "quantised"]) -> None:
        """Make room in the memo for what the next candidates share."""
        self.memo.forget(lambda state: (state[1] is None) == (states == "float"))

    @contextmanager
    def pipeline(self, states: Iterable[State]) -> Generator[Pipeline, None, None]:
        """A pipeline of graphs in these states, for the time of the block. Its statistics begin at zero."""
        wanted = list(states)
        self._close_but(wanted)
        sessions = {state[0]: self._wrapped(state) for state in wanted}
        graphs = Graphs(sessions, Statistics())
        pipeline = Pipeline(self.bundle, graphs, self._options, variant=FLOAT, backend=self._options.backend)
        yield pipeline
        pipeline.clear_caches()

    def _wrapped(self, state: State) -> Session:
        if state not in self._sessions:
            self._sessions[state] = self._open(state)
        session = self._sessions[state]
        if state[0] == DECODER or not self._lasting(state):
            return session
        return RememberingSession(session, self.memo, state)

    def _lasting(self, state: State) -> bool:
        graph, quantised = state
        return quantised is None or quantised == self.layers[graph]

    def _open(self, state: State) -> Session:
        graph, quantised = state
        backend = self._options.backend
        if quantised is None:
            return open_session(self.bundle, FLOAT, graph, backend=backend, options=self._session_options)
        self._write(graph, quantised, self._path(state))
        bundle = self._as_bundle(graph, self._path(state))
        return open_session(bundle, "candidate", graph, backend=backend, options=self._candidate_options)

    def _write(self, graph: str, quantised: frozenset[str], path: Path) -> None:
        if self._weights is None:
            raise RuntimeError("Candidates are used as a context manager.")
        self._quantizer.write_graph(self._weights, path, graph, sorted(self.layers[graph] - quantised))

    def _path(self, state: State) -> Path:
        graph, quantised = state
        name = hashlib.sha256("\n".join(sorted(quantised or ())).encode()).hexdigest()[:16]
        return self._folder / f"{graph}-{name}.onnx"

    def _as_bundle(self, graph: str, path: Path) -> Bundle:
        """A bundle of one graph, so that any backend can open it. Its hash is like no other's: nobody mistakes it."""
        file = FileSpec(path=path.name, sha256=secrets.token_hex(32), size_bytes=path.stat().st_size)
        spec = graph_spec(ir.load(path), file)
        variant = VariantSpec(precision="mixed", numerics="s8-fp32", weights=None, graphs={graph: spec})
        manifest = msgspec.structs.replace(self.bundle.manifest, variants={"candidate": variant}, calibration=None)
        return Bundle(self._folder, manifest, check=False)

    def _close_but(self, wanted: Iterable[State]) -> None:
        """Close the sessions that neither `wanted` nor a later candidate is likely to use."""
        needed = set(wanted)
        for state in list(self._sessions):
            if state not in needed and not (needed and self._lasting(state)):
                self._sessions.pop(state).close()
                if state[1] is not None:
                    self._path(state).unlink(missing_ok=True)


def _without_cache(options: SessionOptions, backend: str) -> SessionOptions:
    """OpenVINO would keep every candidate compiled, and drop what is of use for them."""
    if backend != "openvino":
        return options
    return msgspec.structs.replace(options, provider_options={"CACHE_DIR": "", **options.provider_options})


def _digest(inputs: Mapping[str, Tensor | Array]) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(inputs):
        value = inputs[name]
        array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.digest()
