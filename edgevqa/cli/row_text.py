"""Figures of rows as the terminal shows them, and words for what was quantised how."""

from __future__ import annotations

from edgevqa.runtime.manifest import VariantSpec

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


def counted(number: int, noun: str) -> str:
    """`1 candidate`, `1,200 candidates`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def how_quantised(spec: VariantSpec, graph: str) -> str:
    """What was made of a graph: `int8` (weights and activations), `weight-int4`, or `float`."""
    if graph in spec.weight_only:
        return f"weight-{spec.weight_only[graph]}"
    if graph in spec.high_graphs:
        return "float"
    return "int8" if spec.precision == "mixed" else spec.precision


def otherwise_quantised(spec: VariantSpec) -> str:
    """The graphs that are not what the variant's precision says: `language_decoder weight-int4`."""
    return ", ".join(f"{name} {how_quantised(spec, name)}" for name in (*spec.weight_only, *spec.high_graphs))
