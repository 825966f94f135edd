"""Ask a pipeline every question of some samples: what evaluation, quantisation and the search all read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.normalization import normalize_answer
from edgevqa.runtime.codecs import distinct_labels
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.pipelines.base import Answer, AnswerOptions

MATCHER = "matcher"
MOST_TEXTS = 64
Advance = Callable[[int, int], None]
"""Called with questions answered and questions in all."""


def answer_all(pipeline: Pipeline, samples: Sequence[Sample], *, advance: Advance | None = None) -> Iterator[Answer]:
    """Answers in the samples' order, `max_batch` of the pipeline at once; pictures are opened when their turn comes."""
    size, options = pipeline.options.max_batch, options_for(pipeline.manifest, samples)
    for first in range(0, len(samples), size):
        part = samples[first : first + size]
        yield from pipeline.answer_pairs(((sample.image, sample.question) for sample in part), **options)
        if advance is not None:
            advance(first + len(part), len(samples))


def options_for(manifest: Manifest, samples: Sequence[Sample]) -> AnswerOptions:
    """How the samples are asked: in most flows as they are.

    Where texts are matched to pictures alone, all their labels are the choices (zero-shot). A dual encoder that would answer
    a cosine chooses from the samples' texts instead: which of them fits is an answer that can be the same or another.
    """
    if manifest.pipeline != "matching":
        return {}
    if not any(sample.question for sample in samples):
        return _choices(answer for sample in samples for answer in sample.answers)
    ranks = manifest.matching is not None and manifest.matching.activation == "softmax"
    if ranks and not any(MATCHER in variant.graphs for variant in manifest.variants.values()):
        return _choices(islice(dict.fromkeys(sample.question for sample in samples), MOST_TEXTS))
    return {}


def scored_samples(manifest: Manifest, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, without answers where none could be right: of models that give arrays, or that choose from other texts.

    An answer that is the label of several classes stands for each: which of them is meant, the data does not say.
    """
    choices = options_for(manifest, samples).get("choices")
    reachable = choices is None or any(answer in choices for sample in samples for answer in sample.answers)
    if flow_entry(manifest).answers and reachable:
        return _with_shared_labels(manifest.labels, samples)
    return [replace(sample, answers=[]) for sample in samples]


def _with_shared_labels(labels: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    """The samples, with all classes' names in place of the label that they share."""
    names: dict[str, list[str]] = {}
    for label, name in zip(labels, distinct_labels(labels), strict=True):
        if name != label:
            names.setdefault(normalize_answer(label), []).append(name)
    if not names:
        return list(samples)
    return [
        replace(sample, answers=[name for each in sample.answers for name in names.get(normalize_answer(each), [each])])
        for sample in samples
    ]


def _choices(texts: Iterable[str]) -> AnswerOptions:
    chosen = {" ".join(text.lower().split()): text for text in texts if text.strip()}  # some tokenizers ignore case
    return {"choices": sorted(chosen.values())} if chosen else {}


def texts_of(answers: Iterable[Answer]) -> list[str]:
    """The answers' texts."""
    return [answer.text for answer in answers]
