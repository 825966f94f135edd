"""How right a variant answers data sets, and how often it says what the float model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgevqa.evaluation.answers import answer_all, texts_of
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.metrics import agreement, score
from edgevqa.runtime.pipeline import Pipeline

BATCH = 8


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """One variant's answers to one data set. `batch` is 1 where the graphs could not run several questions at once."""

    dataset: str
    texts: list[str]
    batch: int


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Scores in percent, with 95% intervals; `agreement` is with the float32 variant on the same backend."""

    dataset: str
    n: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    exact_match: float
    agreement: float
    agreement_ci95: tuple[float, float]
    batch: int


def ask(path: Path, variant: str, backend: str, sets: Mapping[str, Sequence[Sample]]) -> list[Answers]:
    """Answer every data set; question by question where a batch fails. Raises what fails then too."""
    return [_ask_one(path, variant, backend, name, samples) for name, samples in sets.items()]


def judge(answers: Answers, reference: Answers, samples: Sequence[Sample]) -> Quality:
    """Scores of the answers, and their agreement with the reference's."""
    scores = score(samples, answers.texts)
    same = agreement(answers.texts, reference.texts)
    return Quality(
        dataset=answers.dataset,
        n=scores.n,
        accuracy=round(scores.accuracy, 3),
        accuracy_ci95=_rounded(scores.ci95),
        exact_match=round(scores.exact_match, 3),
        agreement=round(same.percent, 3),
        agreement_ci95=_rounded(same.ci95),
        batch=answers.batch,
    )


def _ask_one(path: Path, variant: str, backend: str, name: str, samples: Sequence[Sample]) -> Answers:
    try:
        return _ask_in_batches(path, variant, backend, name, samples, BATCH)
    except Exception:  # noqa: BLE001 (what other tools wrote may fail in any way; at batch 1 it is raised)
        return _ask_in_batches(path, variant, backend, name, samples, 1)


def _ask_in_batches(
    path: Path, variant: str, backend: str, name: str, samples: Sequence[Sample], batch: int
) -> Answers:
    with Pipeline.load(path, precision=variant, backend=backend, max_batch=batch) as pipeline:
        return Answers(dataset=name, texts=texts_of(answer_all(pipeline, samples)), batch=batch)


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 3), round(interval[1], 3)
