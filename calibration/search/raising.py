"""Which layers to keep high so that a budget holds: bisection along an order, then lowering one by one.

Nothing here knows of models: `holds` says whether the budget holds with a set of layers kept high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Holds = Callable[[frozenset[str]], bool]


@dataclass(frozen=True, kw_only=True)
class Raised:
    """The layers kept high, or None where no set holds that leaves a layer quantised.

    `complete` is False where time ended before every layer kept high had been tried lower.
    """

    high: frozenset[str] | None
    complete: bool


def raising_order(harm: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Layers by harm done for time saved by quantising them, the worst bargain first.

    `harm` is in any unit, at least 0; `saved` in shares of time. A layer that saves nothing comes first of all.
    """

    def bargain(name: str) -> tuple[float, float]:
        return (harm[name] / saved[name] if saved[name] > 0 else float("inf"), harm[name])

    return sorted(harm, key=lambda name: (*bargain(name), name), reverse=True)


def predict_harm(errors: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The harm of every layer of `errors`: measured where it was, else in proportion to its local error.

    The proportion is the median of the measured layers', which a few terrible ones do not move.
    """
    known = {name: max(value, 0.0) for name, value in measured.items() if name in errors}
    rates = [value / errors[name] for name, value in known.items() if errors[name] > 0]
    rate = median(rates) if rates else 1.0
    return {name: known.get(name, rate * error) for name, error in errors.items()}


def raise_until(
    order: Sequence[str],
    saved: Mapping[str, float],
    holds: Holds,
    *,
    in_time: Callable[[], bool],
    start: frozenset[str] = frozenset(),
) -> Raised:
    """The layers to keep high, `start` among those tried first, such that `holds`; few and cheap ones.

    Doubles the number raised along `order` until it holds (whatever the time: a set is always found where there is
    one), bisects to the fewest, then tries each raised layer lower again, the one that saves most first, while
    `in_time`. A harm that does not add up costs trials, never a set that does not hold.
    """
    rest = [name for name in order if name not in start]
    if holds(start):
        return _lower(start, saved, holds, in_time)
    works = _gallop(start, rest, holds)
    if works is None:  # an order that misled, or no set at all: from the float model downwards, which is slow
        everything = start.union(rest)
        lowered = _lower(everything, saved, holds, in_time)
        return lowered if lowered.high != everything else Raised(high=None, complete=lowered.complete)
    fails = _power_below(works)
    while works - fails > 1 and in_time():
        middle = (fails + works) // 2
        if holds(start.union(rest[:middle])):
            works = middle
        else:
            fails = middle
    return _lower(start.union(rest[:works]), saved, holds, in_time)


def _gallop(start: frozenset[str], rest: Sequence[str], holds: Holds) -> int | None:
    """How many of `rest` to raise so that it holds: 1, 2, 4, ... and at most all but one."""
    most = len(rest) - 1
    count = 1
    while most > 0:
        count = min(count, most)
        if holds(start.union(rest[:count])):
            return count
        if count == most:
            break
        count *= 2
    return None


def _power_below(count: int) -> int:
    """The largest power of two below `count`, what was tried before it; 0 below 1."""
    return 1 << ((count - 1).bit_length() - 1) if count > 1 else 0


def _lower(high: frozenset[str], saved: Mapping[str, float], holds: Holds, in_time: Callable[[], bool]) -> Raised:
    for name in sorted(high, key=lambda name: (-saved[name], name)):
        if not in_time():
            return Raised(high=high, complete=False)
        if holds(high - {name}):
            high = high - {name}
    return Raised(high=high, complete=True)
