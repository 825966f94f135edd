"""Run the runtime's own pipeline on a calibration set, with graphs that tell observers what flows through them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL.Image import Image

from edgevqa.calibration.observation.observers import State, TensorObserver
from edgevqa.calibration.observation.resume import SavedState
from edgevqa.calibration.observation.samples import CalibrationSet
from edgevqa.calibration.observation.statistics import VARIANT, GraphStatistics
from edgevqa.calibration.observation.taps import HIGHEST, TOTAL, TappedGraph, link_weights, tap_graph
from edgevqa.evaluation.answers import options_for
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.errors import EdgeVQAError, InputError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor
from edgevqa.runtime.sessions.ort import OrtSession

BACKEND = "onnxruntime"
SAVE_EVERY_S = 30.0
CACHE_MB = 1 << 16  # whatever one picture needs: nothing is kept beyond it

Report = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was observed, how often each graph ran, and how many samples an earlier, interrupted run had left."""

    graphs: dict[str, GraphStatistics]
    runs: dict[str, int]
    resumed_samples: int


class GraphObserver:
    """What is known of one graph: an observer for each Linear's input, the largest |x| of everything else."""

    def __init__(self, name: str, graph: TappedGraph, seed: int) -> None:
        self.name = name
        self.runs = 0
        self.tensors: dict[str, TensorObserver] = {}
        self._graph = graph
        self._seed = seed
        self._absmax = np.zeros(len(graph.measured), dtype=np.float32)

    def update(self, inputs: Mapping[str, Tensor | Array], outputs: Mapping[str, Tensor]) -> None:
        """Take in one run. Raises `InputError` naming the first tensor that holds NaN or an infinity."""
        graph = self._graph
        if graph.measured:
            self._measure(outputs[HIGHEST].numpy(), outputs[TOTAL].numpy())
        for name in graph.whole:
            value = outputs[name] if name in outputs else inputs[name]
            array = value if isinstance(value, np.ndarray) else value.numpy()
            if name not in self.tensors:
                self.tensors[name] = TensorObserver(self._seed, array.shape[-1])
            if not self.tensors[name].update(array):
                self._refuse(name)
        self.runs += 1

    def statistics(self) -> GraphStatistics:
        """What has been observed so far."""
        graph = self._graph
        inputs = {name: observer.statistics() for name, observer in self.tensors.items()}
        absmax = {name: float(value) for name, value in zip(graph.measured, self._absmax, strict=True)}
        absmax |= dict.fromkeys(graph.bounded, 1.0)
        absmax |= {name: tensor.absmax for name, tensor in inputs.items()}
        for name, source in graph.same.items():
            absmax.setdefault(name, absmax[source])
        return GraphStatistics(inputs=inputs, absmax=absmax)

    def state(self) -> State:
        """Everything, as arrays by name; see `restore`."""
        arrays: State = {"runs": np.array(self.runs), "absmax": self._absmax}
        for number, name in enumerate(self._graph.whole):
            if name in self.tensors:
                arrays |= {f"{number}.{key}": array for key, array in self.tensors[name].state().items()}
        return arrays

    def restore(self, arrays: State) -> None:
        """Go on where the observer that gave these arrays was."""
        self.runs, self._absmax = int(arrays["runs"]), arrays["absmax"]
        for number, name in enumerate(self._graph.whole):
            prefix = f"{number}."
            found = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            if found:
                self.tensors[name] = TensorObserver.restore(self._seed, found)

    def _measure(self, highest: Array, totals: Array) -> None:
        """Take in the largest and the sum of |x| of the measured tensors."""
        wrong = ~np.isfinite(highest) | np.isnan(totals)  # a sum may overflow, for masks are made of huge numbers
        if wrong.any():
            self._refuse(self._graph.measured[int(np.argmax(wrong))])
        self._absmax = np.maximum(self._absmax, highest)

    def _refuse(self, tensor: str) -> None:
        raise InputError(
            f"Tensor '{tensor}' of graph '{self.name}' holds NaN or an infinity: the float32 model itself fails on this "
            "sample. Check the checkpoint that the bundle was exported from."
        )


class ObservingSession:
    """A session that shows every run to an observer and gives what the graph without taps would give."""

    def __init__(self, session: OrtSession, outputs: list[TensorSpec], observer: GraphObserver) -> None:
        self.inputs: list[TensorSpec] = session.inputs
        self.outputs = outputs
        self._session = session
        self._observer = observer

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run the graph; the outputs belong to the caller. Raises what `GraphObserver.update` raises."""
        found = self._session.run(inputs)
        self._observer.update(inputs, found)
        return {spec.name: found[spec.name] for spec in self.outputs}

    def close(self) -> None:
        """Free the session; closing twice is harmless."""
        self._session.close()

    def __enter__(self) -> ObservingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def collect(
    bundle: Bundle, chosen: CalibrationSet, saved: SavedState, *, threads: int = 0, report: Report | None = None
) -> Collected:
    """Answer every question of the set, once, and observe all graphs of the float32 variant.

    Each graph sees what the earlier ones really gave, and the decoder real steps of greedy decoding. Questions are asked
    one at a time, so that no padding is ever seen. What was observed is kept in `saved` every `SAVE_EVERY_S` seconds,
    and a later call goes on from there to the same result, bit for bit. Raises `InputError` naming the question and the
    tensor where the model gives NaN or infinities.
    """
    advance = report or (lambda what, done, total: None)
    total = sum(len(group) for group in chosen.groups)
    advance("load", 0, total)
    with _observed(bundle, chosen.seed, threads) as (pipeline, observers):
        first = _resume(saved, observers)
        done = resumed = sum(len(group) for group in chosen.groups[:first])
        last_save = time.monotonic()
        for number, group in enumerate(chosen.groups[first:], start=first):
            picture = group[0].image
            for sample in group:
                _answer(pipeline, sample, picture)
                done += 1
                advance("observe", done, total)
            pipeline.clear_caches()  # between pictures nothing but the observers remembers: that is where one resumes
            if time.monotonic() - last_save >= SAVE_EVERY_S:
                saved.save(number + 1, {name: observer.state() for name, observer in observers.items()})
                last_save = time.monotonic()
    graphs = {name: observer.statistics() for name, observer in observers.items()}
    runs = {name: observer.runs for name, observer in observers.items()}
    return Collected(graphs=graphs, runs=runs, resumed_samples=resumed)


@contextmanager
def _observed(
    bundle: Bundle, seed: int, threads: int
) -> Generator[tuple[Pipeline, dict[str, GraphObserver]], None, None]:
    """A pipeline on tapped graphs, and their observers. The graphs lie beside the bundle, where links to it work."""
    observers: dict[str, GraphObserver] = {}
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        place = tempfile.TemporaryDirectory(
            prefix=f".{bundle.root.name}.calibrating-", dir=bundle.root.resolve().parent
        )
        folder = Path(stack.enter_context(place))
        link_weights(bundle, VARIANT, folder)
        for name, spec in bundle.variant(VARIANT).graphs.items():
            graph = tap_graph(bundle, VARIANT, name, folder)
            session = OrtSession(graph.path, name, graph.spec, SessionOptions(threads=threads))
            observers[name] = GraphObserver(name, graph, seed)
            sessions[name] = stack.enter_context(ObservingSession(session, spec.outputs, observers[name]))
        options = PipelineOptions(max_batch=1, trunk_cache_mb=CACHE_MB, question_cache_mb=CACHE_MB)
        yield Pipeline(bundle, Graphs(sessions, Statistics()), options, variant=VARIANT, backend=BACKEND), observers


def _resume(saved: SavedState, observers: dict[str, GraphObserver]) -> int:
    """Give the observers what an interrupted run had seen; returns the first group that is still to be run."""
    first, states = saved.load()
    for name, arrays in states.items():
        observers[name].restore(arrays)
    return first


def _answer(pipeline: Pipeline, sample: Sample, picture: Image) -> None:
    options = options_for(pipeline.manifest, [sample])  # of all labels the picture's own is enough
    try:
        pipeline.answer(picture, sample.question, **options)
        if pipeline.embeds:  # graphs that a matching head does not need; kept values make it free for the others
            pipeline.embed_images([picture])
            pipeline.embed_texts(options.get("choices") or [sample.question])
    except InputError as error:
        raise InputError(f"Question {sample.question_id} ({sample.question!r}): {error}") from error
    except EdgeVQAError as error:
        raise EdgeVQAError(f"Question {sample.question_id} ({sample.question!r}): {error}") from error
