"""Two ways to compute the same, timed in turn.

Every session has one thread, the caller's. What is compared is that thread's processor time, in which the waiting for other
processes does not count; wall time is told beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from benchmarks.quantization.speed import Ratio, ratio_of

WARM_UP = 3
LEAST, MOST = 20, 300


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of processor time (median, 10th and 90th percentile), and of wall time (median)."""

    median: float
    p10: float
    p90: float
    wall: float


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """`ratio` is theirs through ours, round by round: above 1 ours is faster. `batch` is what both were timed at."""

    rounds: int
    batch: int
    ours: Spread
    theirs: Spread
    ratio: Ratio


def compare(ours: Callable[[], object], theirs: Callable[[], object], *, batch: int = 1, seconds: float = 15) -> Timing:
    """Time both in turn for about so many seconds, which of them begins alternating."""
    lap = sum(_lap(each)[1] for each in (ours, theirs) for _ in range(WARM_UP)) / WARM_UP
    rounds = int(min(MOST, max(LEAST, seconds * 1e3 / lap)))
    laps: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    both: dict[str, Callable[[], object]] = {"ours": ours, "theirs": theirs}
    for number in range(rounds):
        for name in both if number % 2 else reversed(both):
            laps[name].append(_lap(both[name]))
    ratios = [other[0] / own[0] for own, other in zip(laps["ours"], laps["theirs"], strict=True)]
    return Timing(
        rounds=rounds,
        batch=batch,
        ours=_spread(laps["ours"]),
        theirs=_spread(laps["theirs"]),
        ratio=ratio_of(ratios),
    )


def _lap(run: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.thread_time()
    run()
    return (time.thread_time() - processor) * 1e3, (time.perf_counter() - wall) * 1e3


def _spread(laps: Sequence[tuple[float, float]]) -> Spread:
    low, median, high = (round(float(value), 3) for value in np.percentile([lap[0] for lap in laps], (10, 50, 90)))
    return Spread(median=median, p10=low, p90=high, wall=round(float(np.median([lap[1] for lap in laps])), 3))
