"""Power of a Jetson board from its INA3221 sensors, as sysfs shows them."""

from __future__ import annotations

import re
from pathlib import Path

DEVICES = "sys/bus/i2c/devices"
TOTALS = ("VDD_IN", "POM_5V_IN")
_SUM_CHANNEL = 7  # the sum of the shunt voltages, no rail of its own


class Rail:
    """One measured rail: its label and the files with its voltage (mV) and current (mA)."""

    def __init__(self, label: str, voltage: Path, current: Path) -> None:
        self.label = label
        self._voltage = voltage
        self._current = current

    def watts(self) -> float:
        """Power now. Raises `OSError` and `ValueError` where the sensor cannot be read."""
        return int(self._voltage.read_text()) * int(self._current.read_text()) / 1e6


def find_rails(root: Path = Path("/")) -> list[Rail]:
    """Every connected rail of every INA3221; those not connected (label NC) are left out."""
    rails: list[Rail] = []
    for name in sorted((root / DEVICES).glob("*/name")):
        if _text(name) == "ina3221":
            for label in sorted(name.parent.glob("hwmon/hwmon*/in*_label")):
                rails += _rail(label)
    return rails


def board_rails(root: Path = Path("/")) -> list[Rail]:
    """What adds up to the board's power: the input rail (`VDD_IN`, older `POM_5V_IN`) where there is one, else all."""
    rails = find_rails(root)
    totals = [rail for rail in rails if rail.label in TOTALS]
    return totals or rails


def _rail(label: Path) -> list[Rail]:
    match = re.fullmatch(r"in(\d+)_label", label.name)
    number = int(match.group(1)) if match else _SUM_CHANNEL
    text = _text(label)
    rail = Rail(text, label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
    if number == _SUM_CHANNEL or text in ("", "NC"):
        return []
    try:
        rail.watts()
    except (OSError, ValueError):
        return []
    return [rail]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
