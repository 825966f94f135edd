"""Figures of rows as the terminal shows them."""

from __future__ import annotations

NONE = "-"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point."""
    return NONE if value is None else f"{value:,.{digits}f}"


def interval(value: tuple[float, float] | None) -> str:
    """`97.1 to 98.6`."""
    return NONE if value is None else f"{value[0]:.1f} to {value[1]:.1f}"


def milliseconds(value: float | None) -> str:
    """A time with about three digits."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
