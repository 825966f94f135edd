"""How far a figure can be trusted: confidence intervals for percentages, and McNemar's test for paired answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import InputError

Method = Literal["bootstrap over pictures", "wilson over pictures"]
RESAMPLES = 2000
MIN_CLUSTERS = 10  # fewer pictures than this bootstrap to intervals that are much too narrow
_Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A 95% confidence interval of a share, in percent, and how it was found."""

    low: float
    high: float
    method: Method


class McNemar(msgspec.Struct, frozen=True, kw_only=True):
    """McNemar's exact test: `b` questions only the first answers rightly, `c` only the second; two-sided p-value."""

    b: int
    c: int
    p_value: float


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95% score interval, both ends in 0 to 1, of a share seen in `trials` independent trials.

    `share` may come from scores between 0 and 1, whose variance is at most that of right or wrong: the interval is
    then on the safe side. Source: Wilson, JASA 22 (1927). Raises `InputError` without a trial.
    """
    if trials < 1:
        raise InputError("A confidence interval needs at least one trial; 0 were given.")
    square = _Z95**2
    center = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z95 / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return max(0.0, center - half), min(1.0, center + half)


def clustered_interval(scores: NDArray[np.float64], clusters: Sequence[str], *, seed: int = 0) -> Interval:
    """95% interval of the mean of `scores` (n,), 0 to 1, where questions of one cluster (picture) are not independent.

    Pictures are drawn with replacement 2000 times; the interval is what the middle 95% of the means span. Wilson's interval
    with the number of pictures as trials is given instead where every question has its own picture, where there
    are fewer than ten pictures, and where every resample has the same mean (all right, or all wrong).
    Raises `InputError` without scores or where the lengths differ.
    """
    if len(scores) != len(clusters) or len(scores) == 0:
        raise InputError(f"{len(scores)} scores and {len(clusters)} pictures: expected as many of both, at least one.")
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(members).astype(np.float64)  # (pictures,)
    if MIN_CLUSTERS <= len(counts) < len(scores):
        sums = np.bincount(members, weights=scores).astype(np.float64)  # (pictures,)
        low, high = np.percentile(_resampled_means(sums, counts, seed), [2.5, 97.5])
        if low < high:
            return Interval(low=100 * float(low), high=100 * float(high), method="bootstrap over pictures")
    wide = wilson(float(scores.mean()), len(counts))
    return Interval(low=100 * wide[0], high=100 * wide[1], method="wilson over pictures")


def _resampled_means(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means (resamples,) over pictures drawn with replacement.

    Pictures with the same sum and count are interchangeable, so how often each kind is drawn is multinomial: the same
    distribution as drawing them one by one, for 2000 x kinds numbers instead of 2000 x pictures.
    """
    kinds, sizes = np.unique(np.stack([sums.round(9), counts], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), sizes / len(sums), size=RESAMPLES)  # (resamples, kinds)
    totals: NDArray[np.float64] = drawn @ kinds  # (resamples, 2)
    means: NDArray[np.float64] = (totals[:, 0] / totals[:, 1]).round(12)
    return means


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Test whether two models that answered the same questions are right equally often.

    Only questions that one of them answers rightly count; were both equally good, each would be `b` or `c` with chance 1/2, so
    the p-value is the binomial one, exact at any size. Source: McNemar, Psychometrika 12 (1947). Raises `InputError` where the
    lengths differ.
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} answers: both models must have answered the same questions.")
    b = sum(bool(one) and not two for one, two in zip(first, second, strict=True))
    c = sum(bool(two) and not one for one, two in zip(first, second, strict=True))
    return McNemar(b=b, c=c, p_value=_two_sided(min(b, c), b + c))


def _two_sided(fewer: int, trials: int) -> float:
    """Chance that fair coins, `trials` of them, split at least as unevenly as `fewer` to the rest."""
    ways = term = 1
    for drawn in range(fewer):
        term = term * (trials - drawn) // (drawn + 1)
        ways += term
    return float(min(Fraction(1), Fraction(2 * ways, 2**trials)))
