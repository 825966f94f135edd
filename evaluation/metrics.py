"""How right answers are: VQA accuracy, exact match and ANLS, together and by question type; agreement of two models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.normalization import normalize_answer, single_line
from edgevqa.evaluation.significance import Method, clustered_interval, wilson
from edgevqa.runtime.errors import InputError

ANNOTATORS = 10  # answers a question of VQA v2, TextVQA and VizWiz has
QUORUM = 3  # annotators whose word makes an answer fully right
ANLS_THRESHOLD = 0.5
RIGHT_FROM = (
    0.5  # VQA accuracy from which an answer counts as right where right or wrong is asked: two annotators of ten
)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Scores over `n` questions about `pictures` pictures, all in percent; `ci95` is that of `accuracy` (low, high)."""

    n: int
    pictures: int
    accuracy: float
    ci95: tuple[float, float]
    ci_method: Method
    exact_match: float
    anls: float


class Scores(Figures, frozen=True, kw_only=True):
    """Scores over all questions, and over those of each type, in the order of the types' names."""

    by_type: dict[str, Figures]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """`same` of `n` answers are the same text: in percent, with Wilson's 95% interval (low, high)."""

    n: int
    same: int
    percent: float
    ci95: tuple[float, float]


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA soft accuracy, 0 to 1, as the official evaluation of VQA v2 computes it.

    With ten answers or more: min(others who gave the predicted answer / 3, 1), averaged over leaving each annotator out
    once. Texts are normalised unless all annotators wrote the same, as in the official code: then letters count as they are.
    With fewer answers, which that code does not foresee: min(matches / max(1, 3/10 of the answers), 1), always
    normalised; one answer is then right or wrong, and each of two or three is as good as the others.
    Source: Antol et al., ICCV 2015; GT-Vision-Lab/VQA, commit a013f00. Raises `InputError` without an answer.
    """
    _need_answers(answers)
    if len(answers) < ANNOTATORS:
        matches = sum(_same(prediction, answer) for answer in answers)
        return min(matches / max(1.0, QUORUM / ANNOTATORS * len(answers)), 1.0)
    given, wanted = single_line(prediction), [single_line(answer) for answer in answers]
    if len(set(wanted)) > 1:
        given, wanted = normalize_answer(given), [normalize_answer(answer) for answer in wanted]
    matches = wanted.count(given)
    left_in, left_out = min(matches / QUORUM, 1.0), min((matches - 1) / QUORUM, 1.0)
    return ((len(wanted) - matches) * left_in + matches * left_out) / len(wanted)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether the prediction is one of the answers, both normalised: 1 or 0. Raises `InputError` without an answer."""
    _need_answers(answers)
    return float(any(_same(prediction, answer) for answer in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 to 1; 0 from half the characters wrong on.

    Letters' case does not matter, spaces between words do. Averaged over questions this is ANLS.
    Source: Biten et al., ICCV 2019. Raises `InputError` without an answer.
    """
    _need_answers(answers)
    given = single_line(prediction).lower()
    return max(_similarity(given, single_line(answer).lower()) for answer in set(answers))


def score(samples: Sequence[Sample], predictions: Sequence[str]) -> Scores:
    """Score one prediction a sample. Raises `InputError` where the lengths differ, or samples have no answers."""
    _check(samples, predictions)
    table = _table(samples, predictions)
    pictures = [sample.image_id for sample in samples]
    places: dict[str, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        places[sample.question_type].append(place)
    by_type = {name: _figures(table[rows], [pictures[row] for row in rows]) for name, rows in sorted(places.items())}
    return Scores(**msgspec.structs.asdict(_figures(table, pictures)), by_type=by_type)


def right_or_wrong(samples: Sequence[Sample], predictions: Sequence[str]) -> list[bool]:
    """Whether each prediction has a VQA accuracy of at least 0.5, for McNemar's test. Raises as `score` does."""
    _check(samples, predictions)
    pairs = zip(samples, predictions, strict=True)
    return [vqa_accuracy(prediction, sample.answers) >= RIGHT_FROM for sample, prediction in pairs]


def agreement(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """How many answers of two models are the same text. Raises `InputError` where the lengths differ, or are 0."""
    if len(first) != len(second) or not first:
        raise InputError(f"{len(first)} and {len(second)} answers: expected as many of both models, at least one.")
    same = sum(one == two for one, two in zip(first, second, strict=True))
    low, high = wilson(same / len(first), len(first))
    return Agreement(n=len(first), same=same, percent=100 * same / len(first), ci95=(100 * low, 100 * high))


def _check(samples: Sequence[Sample], predictions: Sequence[str]) -> None:
    if len(samples) != len(predictions) or not samples:
        raise InputError(f"{len(samples)} samples and {len(predictions)} predictions: expected as many, at least one.")
    without = [sample for sample in samples if not sample.answers]
    if without:
        raise InputError(
            f"{len(without)} of {len(samples)} questions have no answers to score against, the first is "
            f"'{without[0].question}' (question {without[0].question_id}). Use a data set with answers, or ask "
            "only for the agreement with the float model."
        )


def _need_answers(answers: Sequence[str]) -> None:
    if not answers:
        raise InputError("A question without answers cannot be scored; at least one answer is needed.")


def _table(samples: Sequence[Sample], predictions: Iterable[str]) -> NDArray[np.float64]:
    """Accuracy, exact match and ANLS of each question: (questions, 3)."""
    metrics = (vqa_accuracy, exact_match, anls)
    pairs = zip(samples, predictions, strict=True)
    return np.array([[metric(text, sample.answers) for metric in metrics] for sample, text in pairs], np.float64)


def _figures(table: NDArray[np.float64], pictures: Sequence[str]) -> Figures:
    accuracy, exact, similar = (100 * float(mean) for mean in table.mean(axis=0))
    interval = clustered_interval(table[:, 0], pictures)
    return Figures(
        n=len(table),
        pictures=len(set(pictures)),
        accuracy=accuracy,
        ci95=(interval.low, interval.high),
        ci_method=interval.method,
        exact_match=exact,
        anls=similar,
    )


def _same(prediction: str, answer: str) -> bool:
    """Whether two texts are one answer; one that normalises to nothing (`a`, `?`) must be met by its own letters."""
    normal = normalize_answer(answer)
    if normal:
        return normalize_answer(prediction) == normal
    return single_line(prediction).lower() == single_line(answer).lower()


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    if one == other or not longer:
        return 1.0
    if abs(len(one) - len(other)) >= ANLS_THRESHOLD * longer:
        return 0.0  # the difference in length alone is half the characters
    distance = _edit_distance(one, other) / longer
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


@lru_cache(maxsize=1 << 16)
def _edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that turn one text into the other."""
    row = list(range(len(other) + 1))
    for above, letter in enumerate(one, start=1):
        before, row[0] = row[0], above
        for place, wanted in enumerate(other, start=1):
            cost = min(row[place] + 1, row[place - 1] + 1, before + (letter != wanted))
            before, row[place] = row[place], cost
    return row[-1]
