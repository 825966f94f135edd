"""Time limits: durations as people write them, and a clock that knows how much is left."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from edgevqa.runtime.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_FORM = re.compile(r"(?:\d+(?:\.\d+)?[smh])+")


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `1.5h` or `1h30m`; a bare number is seconds. Raises `InputError`."""
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", compact):
        compact += "s"
    parts = re.findall(r"[\d.]+[smh]", compact) if _FORM.fullmatch(compact) else []
    seconds = sum(float(part[:-1]) * _UNITS[part[-1]] for part in parts)
    if not 0 < seconds < math.inf:
        raise InputError(f"The time {text!r} is not understood; expected for example 90s, 30m, 2h or 1h30m.")
    return seconds


def readable_duration(seconds: float) -> str:
    """About how long: `40 s`, `12 min`, `2 h 5 min`."""
    whole = max(round(seconds), 0)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Clock:
    """Counts down from `limit_s` (None: no limit) since it was made. `now` gives seconds that only grow."""

    def __init__(self, limit_s: float | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._now = now
        self._start = now()

    @property
    def spent_s(self) -> float:
        return self._now() - self._start

    @property
    def left_s(self) -> float:
        """Seconds left; infinite without a limit, below 0 when it is over."""
        return math.inf if self.limit_s is None else self.limit_s - self.spent_s

    def allows(self, seconds: float, *, share: float = 1.0) -> bool:
        """Whether something that takes about `seconds` would end within `share` of the whole time."""
        return self.limit_s is None or self.spent_s + seconds <= self.limit_s * share

    def tell(self) -> str:
        """The time left, for a line of progress; empty without a limit."""
        if self.limit_s is None:
            return ""
        return f"{readable_duration(self.left_s)} left" if self.left_s > 0 else "time is over"
