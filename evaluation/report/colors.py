"""The colours of the report: told apart with every kind of colour blindness (Okabe and Ito, 2008), and on paper."""

from __future__ import annotations

from collections.abc import Sequence

INK = "#1c2733"
MUTED = "#5b6b7b"
GRID = "#e3e8ee"
ACCENT = "#0072b2"
WARNING = "#d55e00"
QUIET = "#b6c2ce"
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8f2a", "#7b6fd0", "#7a8793")
MARKERS = ("o", "s", "^", "D", "v", "P")


def series(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same for the same order."""
    return {name: SERIES[place % len(SERIES)] for place, name in enumerate(names)}
