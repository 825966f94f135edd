"""What each graph really gets on calibration samples: the pipeline runs at batch 1 and every graph's inputs are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions.base import Array, SessionOptions, Tensor

Feed: TypeAlias = "dict[str, NDArray[Any]]"
BACKEND = "onnxruntime"


class RecordingGraphs(Graphs):
    """Graphs that keep the inputs of at most `limit` runs of each, a uniform sample over all runs."""

    def __init__(self, graphs: Graphs, *, limit: int, seed: int) -> None:
        super().__init__(graphs.sessions, graphs.statistics)
        self.feeds: dict[str, list[Feed]] = {name: [] for name in graphs.sessions}
        self._seen = dict.fromkeys(graphs.sessions, 0)
        self._limit = limit
        self._random = np.random.default_rng(seed)

    def run(self, name: str, inputs: Mapping[str, Tensor | Array], *, stage: str | None = None) -> dict[str, Tensor]:
        """Run a graph, and keep copies of its inputs if the lot falls on them (reservoir sampling)."""
        kept = self.feeds[name]
        self._seen[name] += 1
        place = len(kept) if len(kept) < self._limit else int(self._random.integers(self._seen[name]))
        if place < self._limit:
            kept[place : place + 1] = [{key: _copy(value) for key, value in inputs.items()}]
        return super().run(name, inputs, stage=stage)


def capture(bundle: Bundle, samples: Sequence[Sample], *, limit: int, seed: int = 0) -> dict[str, list[Feed]]:
    """Each graph's inputs, at batch 1, while the float32 variant answers the samples; at most `limit` runs of a graph."""
    options = PipelineOptions(backend=BACKEND, max_batch=1, trunk_cache_mb=0, question_cache_mb=0)
    loaded = Graphs.load(bundle, "fp32", BACKEND, SessionOptions())
    graphs = RecordingGraphs(loaded, limit=limit, seed=seed)
    with Pipeline(bundle, graphs, options, variant="fp32", backend=BACKEND) as pipeline:
        for sample in samples:
            pipeline.answer(sample.image, sample.question)
    return graphs.feeds


def _copy(value: Tensor | Array) -> NDArray[Any]:
    return np.array(value) if isinstance(value, np.ndarray) else value.numpy()
