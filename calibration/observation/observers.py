"""Watch the tensors of running graphs: one pass, a fixed amount of memory a tensor, whatever the number of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevqa.calibration.observation.statistics import TensorStatistics

Floats: TypeAlias = NDArray[np.float32]
State: TypeAlias = "dict[str, NDArray[Any]]"

BINS = 4096  # of the histogram; a multiple of four, so that pairs of bins merge when the range doubles
ROWS = 128  # kept of every tensor
EMPTY = np.uint64(2**64 - 1)  # the priority of a place that no row has taken yet
MAX_BINNED = 1 << 19  # values of one update that enter the histogram; the other figures take all of them
SMALLEST_EXPONENT = -100  # of the limit: below, the factor that bins are found with would overflow


class Histogram:
    """Counts over [-limit, limit]; the limit is a power of two and doubles when a value does not fit.

    Bin borders are exact in float32 and old bins fall into new ones as pairs, so that growing loses nothing: the counts
    are those of a histogram made at once with the last limit.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.exponent = SMALLEST_EXPONENT

    @property
    def limit(self) -> float:
        return math.ldexp(1.0, self.exponent)

    def add(self, values: Floats, absmax: float) -> None:
        """Count `values`, none of which is beyond `absmax`."""
        self._grow(math.frexp(absmax)[1] if absmax else SMALLEST_EXPONENT)  # absmax < 2 ** exponent
        scaled = np.floor(values * np.float32(math.ldexp(BINS // 2, -self.exponent)))
        bins = scaled.astype(np.int32) + BINS // 2
        self.counts += np.bincount(bins.ravel(), minlength=BINS)

    def _grow(self, exponent: int) -> None:
        """Double the limit until it is 2 ** exponent; the first range is taken as it comes."""
        if not self.counts.any():
            self.exponent = max(exponent, SMALLEST_EXPONENT)
        for _ in range(exponent - self.exponent):
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, dtype=np.int64)
            self.counts[BINS // 4 : BINS - BINS // 4] = merged
        self.exponent = max(exponent, self.exponent)


class Reservoir:
    """The `ROWS` rows with the lowest priorities: a uniform sample of all rows, spread over whatever came.

    A row's priority is a hash of the seed and its number, so that a sample depends on nothing else, and two tensors with
    equally many rows keep the same ones.
    """

    def __init__(self, seed: int, channels: int) -> None:
        self._key = np.uint64(seed % (1 << 64))
        self.rows: Floats = np.zeros((ROWS, channels), dtype=np.float32)
        self.priorities: NDArray[np.uint64] = np.full(ROWS, EMPTY, dtype=np.uint64)

    def add(self, rows: Floats, first: int) -> None:
        """Offer `rows` (rows, channels), the first of which has the number `first`."""
        priorities = hashed(np.arange(first, first + len(rows), dtype=np.uint64), self._key)
        wanted = np.flatnonzero(priorities < self.priorities.max())
        if len(wanted) == 0:
            return
        joined = np.concatenate([self.priorities, priorities[wanted]])
        best = np.argsort(joined, kind="stable")[:ROWS]
        leaves = np.ones(ROWS, dtype=np.bool_)
        leaves[best[best < ROWS]] = False
        places, chosen = np.flatnonzero(leaves), wanted[best[best >= ROWS] - ROWS]
        self.rows[places], self.priorities[places] = rows[chosen], priorities[chosen]

    def sample(self) -> Floats:
        """The rows kept, (at most `ROWS`, channels), in random order: the first n are a uniform sample too."""
        filled = int((self.priorities < EMPTY).sum())
        kept: Floats = self.rows[np.argsort(self.priorities)[:filled]]
        return kept


class TensorObserver:
    """What is known of one tensor, (..., channels); see `TensorStatistics`.

    Of an update with more than `MAX_BINNED` values only every n-th row enters the histogram, beginning at another row
    each time; everything else is exact.
    """

    def __init__(self, seed: int, channels: int) -> None:
        self.histogram = Histogram()
        self.reservoir = Reservoir(seed, channels)
        self.row_count = 0
        self._updates = 0
        self._lowest: Floats = np.full(channels, np.inf, dtype=np.float32)
        self._highest: Floats = np.full(channels, -np.inf, dtype=np.float32)
        self._sums: NDArray[np.float64] = np.zeros(channels, dtype=np.float64)

    def update(self, values: NDArray[Any]) -> bool:
        """Take in float32 values of at least one row; False, with nothing taken in, where one is not finite."""
        rows: Floats = values.reshape(-1, values.shape[-1])  # (rows, channels)
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        absmax = max(-float(lowest.min()), float(highest.max()))
        if not math.isfinite(absmax):  # NaN passes through min and max
            return False
        self._lowest = np.minimum(self._lowest, lowest)
        self._highest = np.maximum(self._highest, highest)
        self._sums += rows.sum(axis=0, dtype=np.float64)
        stride = -(-rows.size // MAX_BINNED)
        self.histogram.add(rows[self._updates % stride :: stride], absmax)
        self.reservoir.add(rows, self.row_count)
        self.row_count += len(rows)
        self._updates += 1
        return True

    def statistics(self) -> TensorStatistics:
        """What has been observed. At least one update must have been made."""
        return TensorStatistics(
            low=float(self._lowest.min()),
            high=float(self._highest.max()),
            limit=self.histogram.limit,
            counts=self.histogram.counts.copy(),
            channel_absmax=np.maximum(np.abs(self._lowest), np.abs(self._highest)),
            channel_mean=(self._sums / self.row_count).astype(np.float32),
            rows=self.reservoir.sample(),
            row_count=self.row_count,
        )

    def state(self) -> State:
        """Everything, as arrays: an observer that `restore`s them goes on bit for bit."""
        return {
            "counts": self.histogram.counts,
            "numbers": np.array([self.histogram.exponent, self.row_count, self._updates], dtype=np.int64),
            "lowest": self._lowest,
            "highest": self._highest,
            "sums": self._sums,
            "rows": self.reservoir.rows,
            "priorities": self.reservoir.priorities,
        }

    @classmethod
    def restore(cls, seed: int, state: Mapping[str, NDArray[Any]]) -> TensorObserver:
        """The observer that gave `state`, with the seed it was made with."""
        observer = cls(seed, len(state["sums"]))
        observer.histogram.counts = state["counts"]
        observer.histogram.exponent, observer.row_count, observer._updates = (int(n) for n in state["numbers"])
        observer._lowest, observer._highest, observer._sums = state["lowest"], state["highest"], state["sums"]
        observer.reservoir.rows, observer.reservoir.priorities = state["rows"], state["priorities"]
        return observer


def hashed(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Numbers that look random, the same for the same number and key.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
    """
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.array([key])
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found
