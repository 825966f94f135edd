"""Intervals and McNemar's test against hand-computed values and plain resampling."""

from __future__ import annotations

import numpy as np
import pytest

from edgevqa.evaluation.significance import clustered_interval, mcnemar, wilson
from edgevqa.runtime.errors import InputError


@pytest.mark.parametrize(
    ("b", "c", "p_value"),
    [
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (1, 8, 2 * (1 + 9) / 2**9),
        (0, 6, 2 / 2**6),
        (5, 5, 1.0),
        (5, 4, 1.0),  # 2 * (1 + 9 + 36 + 84 + 126) / 2**9 is 1
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(b: int, c: int, p_value: float) -> None:
    first = [True] * b + [False] * c + [True] * 7 + [False] * 3
    second = [False] * b + [True] * c + [True] * 7 + [False] * 3
    result = mcnemar(first, second)
    assert (result.b, result.c) == (b, c)
    assert result.p_value == pytest.approx(p_value, rel=1e-12)
    turned = mcnemar(second, first)
    assert (turned.b, turned.c, turned.p_value) == (c, b, result.p_value)


def test_mcnemar_is_exact_where_powers_of_two_leave_floating_point() -> None:
    # Of 5,000 pairs, 2,400 against 2,600: the normal approximation with continuity correction gives
    # z = 199 / sqrt(5000) = 2.8143, p = 0.00489.
    result = mcnemar([True] * 2400 + [False] * 2600, [False] * 2400 + [True] * 2600)
    assert result.p_value == pytest.approx(0.00489, rel=0.01)


def test_mcnemar_wants_pairs() -> None:
    with pytest.raises(InputError, match="2 and 1 answers"):
        mcnemar([True, False], [True])


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [
        (0.0, 10, 0.0, 0.27753),
        (0.5, 10, 0.23659, 0.76341),
        (1.0, 10, 0.72247, 1.0),
        (81 / 263, 263, 0.2553, 0.3662),
    ],  # the last: Newcombe, 1998, table I
)
def test_wilson(share: float, trials: int, low: float, high: float) -> None:
    assert wilson(share, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_wants_a_trial() -> None:
    with pytest.raises(InputError, match="0 were given"):
        wilson(0.5, 0)


def resampled(scores: np.ndarray, clusters: list[str], resamples: int) -> tuple[float, float]:
    """The same interval by drawing pictures one by one."""
    rng = np.random.default_rng(11)
    groups = [np.flatnonzero(np.asarray(clusters) == name) for name in sorted(set(clusters))]
    means = [
        scores[np.concatenate([groups[g] for g in rng.integers(0, len(groups), len(groups))])].mean()
        for _ in range(resamples)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def test_clustered_interval_is_what_drawing_pictures_gives() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, 150)
    clusters = [str(picture) for picture, size in enumerate(sizes) for _ in range(size)]
    easy = np.repeat(rng.random(150), sizes)
    scores = np.where(rng.random(len(easy)) < easy, 1.0, 0.0) * rng.choice([0.3, 0.6, 0.9, 1.0], len(easy))
    interval = clustered_interval(scores, clusters)
    assert interval.method == "bootstrap over pictures"
    assert (interval.low, interval.high) == pytest.approx(resampled(scores, clusters, 4000), abs=0.6)
    assert interval == clustered_interval(scores, clusters)
    assert interval != clustered_interval(scores, clusters, seed=1)


def test_questions_of_one_picture_do_not_count_as_independent() -> None:
    right = np.arange(100) < 80
    clusters = [str(picture) for picture in range(100) for _ in range(10)]
    interval = clustered_interval(np.repeat(right, 10).astype(np.float64), clusters)
    low, high = wilson(0.8, 100)
    assert interval.high - interval.low == pytest.approx(100 * (high - low), rel=0.1)


@pytest.mark.parametrize(
    ("scores", "clusters", "share", "pictures"),
    [
        ([1.0] * 60 + [0.0] * 20, [str(i) for i in range(80)], 0.75, 80),  # a picture a question
        ([1.0] * 80, [str(i // 4) for i in range(80)], 1.0, 20),  # all right
        ([0.0] * 80, [str(i // 4) for i in range(80)], 0.0, 20),  # all wrong
        ([1.0, 0.0] * 40, [str(i // 2) for i in range(80)], 0.5, 40),  # every resample has the same mean
        ([1.0, 1.0, 0.0] * 9, [str(i % 9) for i in range(27)], 2 / 3, 9),  # too few pictures
        ([1.0, 1.0, 0.0], ["0"] * 3, 2 / 3, 1),
    ],
)
def test_wilson_over_pictures_where_resampling_says_nothing(
    scores: list[float], clusters: list[str], share: float, pictures: int
) -> None:
    interval = clustered_interval(np.array(scores), clusters)
    low, high = wilson(share, pictures)
    assert interval.method == "wilson over pictures"
    assert (interval.low, interval.high) == pytest.approx((100 * low, 100 * high))


def test_clustered_interval_wants_as_many_pictures_as_scores() -> None:
    with pytest.raises(InputError, match="2 scores and 1 pictures"):
        clustered_interval(np.ones(2), ["0"])
    with pytest.raises(InputError, match="0 scores and 0 pictures"):
        clustered_interval(np.ones(0), [])
