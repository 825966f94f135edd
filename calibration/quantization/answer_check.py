"""Ask a variant that was just written what the float model was asked: the last check before it is published."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgevqa.calibration.casting.emulate import emulated_graphs
from edgevqa.calibration.observation.statistics import VARIANT
from edgevqa.calibration.search.trials import drop_interval
from edgevqa.evaluation.answers import Advance, answer_all, scored_samples, texts_of
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.metrics import vqa_accuracy
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions.base import SessionOptions

BACKEND = "onnxruntime"
EMULATED = "onnxruntime, which computes FP16 and BF16 in FP32 with their rounding"
_INSIDE_FP32 = ("fp32", "u8-fp32", "s8-fp32")


class AnswerCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a variant's answers to held-out samples differ from the float model's, in percent and points.

    `accuracy` is VQA accuracy, None where the samples have no answers: `drop` is then of agreement. `backend` says what
    ran the variant.
    """

    dataset: str
    backend: str
    samples: int
    agreement: float
    float_accuracy: float | None
    accuracy: float | None
    drop: float
    drop_ci95: tuple[float, float]


class AnswerChecker:
    """Asks the float model once, then any number of variants of the same bundle."""

    def __init__(self, dataset: str, samples: Sequence[Sample], *, threads: int = 0, max_batch: int = 8) -> None:
        self.dataset, self.samples = dataset, list(samples)
        self.options = PipelineOptions(backend=BACKEND, threads=threads, max_batch=max_batch, check=False)
        self._float: list[str] = []

    def check(self, bundle: Bundle, variant: str, advance: Advance | None = None) -> AnswerCheck:
        """Compare `variant` with the float model; what is inside FP16 or BF16 runs in FP32 with its rounding."""
        if not self._float:
            self.samples = scored_samples(bundle.manifest, self.samples)
            self._float = self._answers(bundle, VARIANT, advance)
        texts = self._answers(bundle, variant, advance)
        same = [before == after for before, after in zip(self._float, texts, strict=True)]
        before, after = self._scores(self._float), self._scores(texts)
        lost = [old - new for old, new in zip(before, after, strict=True)] or [float(not equal) for equal in same]
        low, high = drop_interval(lost)
        return AnswerCheck(
            dataset=self.dataset,
            backend=EMULATED if _emulated(bundle.variant(variant).numerics) else BACKEND,
            samples=len(same),
            agreement=_percent(same),
            float_accuracy=_percent(before) if before else None,
            accuracy=_percent(after) if after else None,
            drop=_percent(lost),
            drop_ci95=(100 * low, 100 * high),
        )

    def _scores(self, texts: Sequence[str]) -> list[float]:
        """VQA accuracy of each answer; empty where not every sample has answers."""
        if not all(sample.answers for sample in self.samples):
            return []
        return [vqa_accuracy(text, sample.answers) for text, sample in zip(texts, self.samples, strict=True)]

    def _answers(self, bundle: Bundle, variant: str, advance: Advance | None) -> list[str]:
        graphs = self._graphs(bundle, variant)
        with Pipeline(bundle, graphs, self.options, variant=variant, backend=BACKEND) as pipeline:
            return texts_of(answer_all(pipeline, self.samples, advance=advance))

    def _graphs(self, bundle: Bundle, variant: str) -> Graphs:
        session = SessionOptions(threads=self.options.threads)
        if not _emulated(bundle.variant(variant).numerics):
            return Graphs.load(bundle, variant, BACKEND, session)
        with tempfile.TemporaryDirectory() as folder:
            return emulated_graphs(bundle, variant, Path(folder), session)


def _emulated(numerics: Numerics) -> bool:
    return numerics not in _INSIDE_FP32


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
