"""Energy of the processor from RAPL: Linux' powercap counters of Intel and AMD packages."""

from __future__ import annotations

import re
from pathlib import Path

POWERCAP = "sys/class/powercap"
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")


class RaplZone:
    """One counter in microjoules, which starts again at 0 after `max_energy_range_uj`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._counter = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = self._read_uj()
        self._total_uj = 0

    def joules(self) -> float:
        """Joules since the zone was opened; must be read at least once a turn of the counter (minutes)."""
        now_uj = self._read_uj()
        gained = now_uj - self._last_uj
        self._total_uj += gained if gained >= 0 else gained + self._range_uj + 1
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def close(self) -> None:
        """Nothing is held open."""

    def _read_uj(self) -> int:
        return int(self._counter.read_text())


def open_zones(root: Path = Path("/")) -> list[RaplZone]:
    """The processor packages and their memory; empty where there are none or they may not be read.

    A package's memory (`dram`) is counted apart by the hardware, its cores are not; `psys` holds the packages and is
    left out, as are the same counters seen through memory-mapped registers (`intel-rapl-mmio`).
    """
    zones: list[RaplZone] = []
    for folder in sorted((root / POWERCAP).glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if _PACKAGE.fullmatch(name) or name == "dram":
                zones.append(RaplZone(folder, f"RAPL {name}"))
        except (OSError, ValueError):  # since 2020 kernels let root alone read the counters
            continue
    return zones


def unreadable(root: Path = Path("/")) -> bool:
    """Whether there are counters that this user may not read."""
    return any((root / POWERCAP).glob("intel-rapl:*")) and not open_zones(root)
