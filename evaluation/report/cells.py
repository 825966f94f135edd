"""Figures of rows as people read them: the cells of the report's tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from edgevqa.evaluation.rows import Row
from edgevqa.evaluation.significance import McNemar

NONE = "–"
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The figure, a smaller line below it, and whether it is the best of its column."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a row is called: its variant, and where it ran as far as rows differ in that (backend, bundle)."""

    variant: str
    place: str

    @property
    def full(self) -> str:
        return f"{self.variant} · {self.place}" if self.place else self.variant


def row_names(rows: list[Row]) -> list[Name]:
    """Names that tell the rows apart."""
    backends, bundles = {row.backend for row in rows}, {row.bundle for row in rows}
    folders = {bundle: PurePath(bundle).name for bundle in bundles}
    short = folders if len(set(folders.values())) == len(bundles) else {bundle: bundle for bundle in bundles}
    return [
        Name(
            variant=row.variant,
            place=" · ".join([row.backend] * (len(backends) > 1) + [short[row.bundle]] * (len(bundles) > 1)),
        )
        for row in rows
    ]


def number(value: float | None, digits: int = 1) -> str:
    """A number with a fixed count of digits after the point, and thousands apart."""
    return NONE if value is None else f"{value:,.{digits}f}"


def milliseconds(value: float | None) -> str:
    """A time with about three digits."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def p_value(value: float) -> str:
    """`p = 0.034`, and below a thousandth only that."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.995 else "p = 1"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, and 0 without one."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def judgement(found: McNemar) -> str:
    """What McNemar's test says, in words."""
    if found.b == found.c == 0:
        return "every question is right or wrong for both"
    if found.p_value >= ALPHA:
        return "no difference found"
    return "worse than the float model" if found.b > found.c else "better than the float model"


def ratio(value: float | None, base: float | None, *, words: tuple[str, str]) -> str:
    """`1.9x faster` or the other word; empty where there is nothing to compare."""
    if not value or not base:
        return ""
    times = base / value
    if 0.995 < times < 1.005:
        return "the same"
    return f"{times:.2f}× {words[0]}" if times > 1 else f"{1 / times:.2f}× {words[1]}"


def summary(rows: list[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and cells of the table above all others, a row each; columns that nobody has a figure for are left out."""
    table = [_cells(row, float_row(row, rows)) for row in rows]
    columns = [name for name in table[0] if any(cells[name].text != NONE for cells in table)]
    best = {name: _best(name, [_value(row, name) for row in rows]) for name in columns}
    marked = [
        [
            Cell(text=cells[name].text, detail=cells[name].detail, best=_is_best(_value(row, name), best[name]))
            for name in columns
        ]
        for row, cells in zip(rows, table, strict=True)
    ]
    return columns, marked


def float_row(row: Row, rows: list[Row]) -> Row | None:
    """The fp32 row of the same bundle: on the same backend, else where there is only one."""
    floats = [other for other in rows if other.precision == "fp32" and other.bundle == row.bundle]
    here = [other for other in floats if other.backend == row.backend]
    return here[0] if here else floats[0] if len(floats) == 1 else None


def _cells(row: Row, base: Row | None) -> dict[str, Cell]:
    other = None if base is None or base is row else base
    faster, smaller = ("faster", "slower"), ("smaller", "larger")
    interval = "" if row.ci95 is None else f"{number(row.ci95[0])} to {number(row.ci95[1])}"
    drop = "" if row.accuracy_drop is None or other is None else signed(-row.accuracy_drop)
    same = "" if row.changed is None or other is None else f"{row.changed:,} changed"
    return {
        "accuracy %": Cell(text=number(row.accuracy, 2), detail=interval),
        "points to float": Cell(text=drop or NONE, detail=p_value(row.mcnemar.p_value) if drop and row.mcnemar else ""),
        "same answers %": Cell(text=number(row.agreement, 2) if other else NONE, detail=same),
        "first answer ms": _latency(row, other, "first", faster),
        "next answer ms": _latency(row, other, "next", faster),
        "answers / s": Cell(
            text=number(row.throughput_per_s, 1),
            detail=ratio(other.throughput_per_s, row.throughput_per_s, words=faster) if other else "",
        ),
        "peak memory MB": Cell(
            text=number(row.peak_memory_mb, 0),
            detail=ratio(row.peak_memory_mb, None if other is None else other.peak_memory_mb, words=("less", "more")),
        ),
        "size MB": Cell(
            text=number(row.size_mb, 1),
            detail=ratio(row.size_mb, None if other is None else other.size_mb, words=smaller),
        ),
        "energy J": Cell(
            text=number(row.energy_j, 3),
            detail=ratio(row.energy_j, None if other is None else other.energy_j, words=("less", "more")),
        ),
    }


def _latency(row: Row, base: Row | None, which: str, words: tuple[str, str]) -> Cell:
    spread = row.latency_ms.get(which)
    if spread is None:
        return Cell(text=NONE)
    before = base.latency_ms.get(which) if base is not None else None
    times = ratio(spread.p50, None if before is None else before.p50, words=words)
    tail = f"p90 {milliseconds(spread.p90)}, p99 {milliseconds(spread.p99)}"
    return Cell(text=milliseconds(spread.p50), detail=f"{times}; {tail}" if times else tail)


def _value(row: Row, column: str) -> float | None:
    """What a column is compared by."""
    first, following = row.latency_ms.get("first"), row.latency_ms.get("next")
    return {
        "first answer ms": None if first is None else first.p50,
        "next answer ms": None if following is None else following.p50,
        "answers / s": row.throughput_per_s,
        "peak memory MB": row.peak_memory_mb,
        "size MB": row.size_mb,
        "energy J": row.energy_j,
    }.get(column)


def _best(column: str, values: list[float | None]) -> float | None:
    """The best value of a column whose values differ by more than noise (5%); accuracies have their test instead."""
    known = [value for value in values if value is not None]
    if not known or min(known) > 0.95 * max(known):
        return None
    return max(known) if column == "answers / s" else min(known)


def _is_best(value: float | None, best: float | None) -> bool:
    """Whether a value is the best one, or within 1% of it."""
    return value is not None and best is not None and abs(value - best) <= 0.01 * abs(best)
