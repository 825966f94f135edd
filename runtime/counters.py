"""Counters and stage times of a pipeline, so that reuse can be seen and time can be told."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec


class Statistics(msgspec.Struct, kw_only=True):
    """What a pipeline has done since it was loaded.

    `runs` and `stage_ms` count each stage (`load_image`, `preprocess`, `tokenize`, and every graph by its name) and add
    up its time in milliseconds. A hit is an image or question whose states were reused instead of computed. `history`
    keeps the milliseconds of every single run where it is set to an empty dictionary.
    """

    runs: dict[str, int] = {}
    stage_ms: dict[str, float] = {}
    image_hits: int = 0
    image_misses: int = 0
    question_hits: int = 0
    question_misses: int = 0
    history: dict[str, list[float]] | None = None

    @contextmanager
    def timed(self, stage: str) -> Generator[None, None, None]:
        """Time one run of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed_ms = (time.perf_counter() - start) * 1e3
            self.runs[stage] = self.runs.get(stage, 0) + 1
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + elapsed_ms
            if self.history is not None:
                self.history.setdefault(stage, []).append(elapsed_ms)

    def reset(self) -> None:
        """Set everything back to zero; a history goes on, emptied."""
        self.history = None if self.history is None else {}
        self.runs, self.stage_ms = {}, {}
        self.image_hits = self.image_misses = self.question_hits = self.question_misses = 0


class Lap:
    """The stage times of one call: the difference between two readings of the statistics, and the total."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._before = dict(statistics.stage_ms)
        self._start = time.perf_counter()

    def timing_ms(self) -> dict[str, float]:
        """Milliseconds of every stage that ran since the lap began, and `total`."""
        total = (time.perf_counter() - self._start) * 1e3
        spent = {
            stage: value - self._before.get(stage, 0.0)
            for stage, value in self._statistics.stage_ms.items()
            if value > self._before.get(stage, 0.0)
        }
        return {**spent, "total": total}
