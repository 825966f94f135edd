"""Ask a pipeline every question of some samples: what evaluation, quantisation and the search all read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import Answer

Advance = Callable[[int, int], None]
"""Called with questions answered and questions in all."""


def answer_all(pipeline: Pipeline, samples: Sequence[Sample], *, advance: Advance | None = None) -> Iterator[Answer]:
    """Answers in the samples' order, `max_batch` of the pipeline at once; pictures are opened when their turn comes."""
    size = pipeline.options.max_batch
    for first in range(0, len(samples), size):
        part = samples[first : first + size]
        yield from pipeline.answer_pairs((sample.image, sample.question) for sample in part)
        if advance is not None:
            advance(first + len(part), len(samples))


def texts_of(answers: Iterable[Answer]) -> list[str]:
    """The answers' texts."""
    return [answer.text for answer in answers]
