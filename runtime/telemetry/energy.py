"""Joules that a stretch of work took: counters read, powers sampled, and which sensors said so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgevqa.runtime.telemetry.ina3221 import board_rails
from edgevqa.runtime.telemetry.nvidia import open_gpu_power
from edgevqa.runtime.telemetry.rapl import open_zones, unreadable

SAMPLE_S = 0.05


class EnergyCounter(Protocol):
    """Something that counts joules since it was opened."""

    name: str

    def joules(self) -> float: ...

    def close(self) -> None: ...


class SampledPower:
    """A power in watts, read on a thread of its own and added up over time (trapezoids)."""

    def __init__(
        self,
        name: str,
        watts: Callable[[], float],
        *,
        close: Callable[[], None] | None = None,
        interval_s: float = SAMPLE_S,
    ) -> None:
        """`close` frees what `watts` reads."""
        self.name = name
        self._watts = watts
        self._close = close
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._time, self._power, self._total = time.perf_counter(), watts(), 0.0
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"energy {name}")
        self._thread.start()

    def joules(self) -> float:
        """Joules since the sensor was opened, up to now."""
        with self._lock:
            self._sample()
            return self._total

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        if self._close is not None:
            self._close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        try:
            power = self._watts()
        except (OSError, ValueError):  # a sensor may be busy for a moment: what it said last is taken
            power = self._power
        now = time.perf_counter()
        self._total += (power + self._power) / 2 * (now - self._time)
        self._time, self._power = now, power


class EnergyMeter:
    """The sensors that together cover what is measured, each part once. A context manager.

    On a Jetson that is the board's input; elsewhere the processor packages with their memory, and with `gpu` the GPUs.
    Whatever else the machine does is counted too, and so is what it draws when idle.
    """

    def __init__(self, counters: list[EnergyCounter], *, missing: str | None = None) -> None:
        """`missing` says why there is no sensor, where that is known."""
        self.counters = counters
        self.missing = missing

    @classmethod
    def open(cls, root: Path = Path("/"), *, gpu: bool = False) -> EnergyMeter:
        """Find the sensors below `root`; `gpu` says that the work runs on an NVIDIA GPU."""
        rails = board_rails(root)
        if rails:
            return cls([SampledPower(f"INA3221 {rail.label}", rail.watts) for rail in rails])
        counters: list[EnergyCounter] = [*open_zones(root)]
        power = open_gpu_power() if gpu else None
        if power is not None:
            counters.append(SampledPower(power.label, power.watts, close=power.close))
        return cls(counters, missing=_missing(root))

    @property
    def sensors(self) -> list[str]:
        """The sensors' names."""
        return [counter.name for counter in self.counters]

    def joules(self) -> float | None:
        """Joules since opening, of all sensors together; None without a sensor."""
        return sum(counter.joules() for counter in self.counters) if self.counters else None

    def close(self) -> None:
        """Stop reading."""
        for counter in self.counters:
            counter.close()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _missing(root: Path) -> str:
    if unreadable(root):
        return "the processor's energy counters may be read by root alone"
    return "no energy sensor (RAPL, NVML, INA3221) was found"
