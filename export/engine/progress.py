"""How far a build is, in words, and how long it will still take where that is known."""

from __future__ import annotations

import time

from edgevqa.export.engine.protocol import Phase

_PACE_STEPS, _PACE_S = 2, 1.0  # steps and seconds from which a phase has a pace


class TimeLeft:
    """An estimate of the time left of a phase, from the pace of the steps that were done."""

    def __init__(self) -> None:
        self._name, self._first, self._done = "", 0, 0
        self._began = self._stepped = 0.0

    def tell(self, phase: Phase, now: float | None = None) -> str:
        """`tactics 40 of 120 (33%), about 12 s left`; without the time where it is not known, or used up."""
        now = time.monotonic() if now is None else now
        if phase.name != self._name or phase.done < self._done:
            self._name, self._first, self._began, self._stepped = phase.name, phase.done, now, now
        elif phase.done > self._done:
            self._stepped = now
        self._done = phase.done
        if phase.total <= 0:
            return phase.name
        text = f"{phase.name} {phase.done} of {phase.total} ({phase.done / phase.total:.0%})"
        steps, took = phase.done - self._first, self._stepped - self._began
        if steps < _PACE_STEPS or took < _PACE_S:
            return text
        left = took / steps * (phase.total - phase.done) - (now - self._stepped)
        return f"{text}, about {left:.0f} s left" if left >= 1 else text
