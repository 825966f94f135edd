"""From what was observed of a tensor to the range that 8 bits are spread over, by one of several methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevqa.calibration.observation.statistics import TensorStatistics
from edgevqa.runtime.errors import ConfigError

Counts: TypeAlias = NDArray[np.int64]
Doubles: TypeAlias = NDArray[np.float64]
Range: TypeAlias = tuple[float, float]

METHODS = ("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "entropy", "mse")

SIGNED_LEVELS = 128  # of |x|
UNSIGNED_LEVELS = 256
CANDIDATES = 160  # borders that entropy tries, and MSE on either side of an asymmetric range
SMALLEST_SHARE = 1e-9  # what a level counts for where nothing was put on it


def activation_range(statistics: TensorStatistics, method: str, *, symmetric: bool) -> Range:
    """The range (low, high) with low <= 0 <= high; low = -high where `symmetric`.

    `max`: all that was seen. `percentile-P`: what is left when 100 - P percent of the values are cut off, of |x| where
    `symmetric`, else half of them at either end; inside a bin of the histogram values are taken to lie evenly.
    `entropy`: the limit of |x| whose quantised histogram is nearest to the observed one by Kullback-Leibler divergence.
    `mse`: the borders with the least mean square error. Both leave exact zeros out of account, for they cost nothing.
    No range is wider than `max`; (0, 0) means that all was zero.
    Raises `ConfigError` for another method.
    """
    if method not in METHODS:
        raise ConfigError(f"Unknown method '{method}'; expected {', '.join(METHODS)}.")
    widest = _widest(statistics, symmetric)
    if method == "max" or statistics.absmax == 0.0:
        return widest
    kind, _, percent = method.partition("-")
    choose: dict[str, Callable[[], Range]] = {
        "percentile": lambda: _percentile(statistics, float(percent) / 100, symmetric),
        "entropy": lambda: _entropy(statistics),
        "mse": lambda: _least_error(statistics, symmetric),
    }
    low, high = choose[kind]()
    low, high = max(min(low, 0.0), widest[0]), min(max(high, 0.0), widest[1])
    return (low + 0.0, high) if high > low else widest  # + 0.0: no negative zero


def _widest(statistics: TensorStatistics, symmetric: bool) -> Range:
    if symmetric:
        return 0.0 - statistics.absmax, statistics.absmax
    return min(statistics.low, 0.0), max(statistics.high, 0.0)


def _sides(counts: Counts) -> tuple[Counts, Counts]:
    """The histogram right of zero, and left of it in the mirror: (bins / 2,) each, over [0, limit]."""
    half = len(counts) // 2
    return counts[half:], counts[half - 1 :: -1]


def _without_zeros(statistics: TensorStatistics) -> tuple[Counts, Counts]:
    """Both sides without the values that were exactly zero, whose share the kept rows tell."""
    right, left = _sides(statistics.counts)
    zeros = int((statistics.rows == 0).mean() * statistics.counts.sum())
    right = right.copy()
    right[0] = max(right[0] - zeros, 0)
    return right, left


def _width(statistics: TensorStatistics) -> float:
    return 2 * statistics.limit / len(statistics.counts)


def _percentile(statistics: TensorStatistics, share: float, symmetric: bool) -> Range:
    counts, width = statistics.counts, _width(statistics)
    if symmetric:
        right, left = _sides(counts)
        high = _quantile(right + left, share) * width
        return -high, high
    share = (1 + share) / 2
    return statistics.limit - _quantile(counts[::-1], share) * width, _quantile(
        counts, share
    ) * width - statistics.limit


def _quantile(counts: Counts, share: float) -> float:
    """How many bins from the left hold `share` of the values; a fraction of the last bin is counted."""
    summed = np.cumsum(counts)
    wanted = share * float(summed[-1])
    last = int(np.searchsorted(summed, wanted))
    return last + 1 - (float(summed[last]) - wanted) / float(counts[last])


def _occupied(counts: Counts) -> int:
    """How many bins from the left reach the last that holds something."""
    found = np.flatnonzero(counts)
    return int(found[-1]) + 1 if len(found) else 0


def _borders(counts: Counts, fewest: int) -> Counts:
    """How many bins one might keep: from `fewest` to all that are occupied, denser where they are few."""
    bins = _occupied(counts)
    if bins <= fewest:
        return np.array([bins])
    return np.unique(np.geomspace(fewest, bins, CANDIDATES).round().astype(np.int64))


def _entropy(statistics: TensorStatistics) -> Range:
    right, left = _without_zeros(statistics)
    bins = _borders(right + left, SIGNED_LEVELS)
    best = int(bins[np.argmin([_divergence(right + left, int(kept)) for kept in bins])])
    return -best * _width(statistics), best * _width(statistics)


def _divergence(counts: Counts, kept: int) -> float:
    """Of the histogram of |x| cut after `kept` bins from what 128 levels, spread over the bins in use, make of it.

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    inside = counts[:kept].astype(np.float64)
    observed = inside.copy()
    observed[-1] += counts[kept:].sum()
    level = np.arange(kept) * SIGNED_LEVELS // kept  # (kept,)
    used = observed > 0
    sums = np.bincount(level, weights=inside)
    bins = np.bincount(level, weights=used)
    spread = (sums / np.maximum(bins, 1))[level[used]]
    share, quantised = observed[used] / observed.sum(), spread / max(inside.sum(), 1.0)
    return float((share * np.log(share / np.maximum(quantised, SMALLEST_SHARE))).sum())


def _least_error(statistics: TensorStatistics, symmetric: bool) -> Range:
    width = _width(statistics)
    right, left = _without_zeros(statistics)
    if symmetric:
        bins = np.arange(1, _occupied(right + left) + 1)
        costs = _cost(right + left, bins, bins / (SIGNED_LEVELS - 1))
        high = float(bins[np.argmin(costs)]) * width
        return -high, high
    up, down = _borders(right, 1)[:, None], _borders(left, 1)[None, :]
    steps = (up + down) / (UNSIGNED_LEVELS - 1)  # (up, down)
    best = int(np.argmin(_cost(right, up, steps) + _cost(left, down, steps)))
    row, column = divmod(best, down.size)
    return 0.0 - float(down[0, column]) * width, float(up[row, 0]) * width


def _cost(counts: Counts, bins: Counts, steps: NDArray[Any]) -> Doubles:
    """The square error on one side of zero, cut after `bins` and rounded to `steps`; both, and the result, in bins.

    What is nearer to zero than half a step becomes zero, what is between costs step ** 2 / 12, what is beyond is cut.
    """
    centres = np.arange(len(counts)) + 0.5
    moments = np.cumsum(counts * np.stack([np.ones_like(centres), centres, centres**2]), axis=1)
    moments = np.concatenate([np.zeros((3, 1)), moments], axis=1)  # (3, bins + 1)
    lost = np.minimum((steps / 2).astype(np.int64), bins)
    tail = moments[:, -1].reshape(3, *[1] * bins.ndim) - moments[:, bins]
    clipped = tail[2] - 2 * bins * tail[1] + bins**2 * tail[0]
    rounded = (moments[0, bins] - moments[0, lost]) * steps**2 / 12
    costs: Doubles = moments[2, lost] + rounded + np.maximum(clipped, 0.0)
    return costs
