"""The rows of the comparison with other quantisers, as a table, and whether another one wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.quantization.answering import Quality
from benchmarks.quantization.speed import Speedup

OURS = "edgevqa"


class Row(msgspec.Struct, kw_only=True):
    """One way to quantise. `float32` names the graphs that the tool failed on, each with the reason.

    `size_ratio` is the size in parts of the float32 variant's. `quality` has a row a data set, `speed` one a backend.
    """

    name: str
    tool: str
    settings: str
    numerics: str
    variant: str | None = None
    seconds: float = 0.0
    float32: dict[str, str] = {}
    error: str | None = None
    size_mb: float = 0.0
    size_ratio: float = 0.0
    quality: list[Quality] = []
    speed: dict[str, Speedup] = {}
    speed_errors: dict[str, str] = {}

    @property
    def agreement(self) -> float:
        """Agreement with float32 in percent, over the questions of all data sets."""
        return _mean([(each.n, each.agreement) for each in self.quality])

    @property
    def agreement_low(self) -> float:
        """The lower end of its interval."""
        return _mean([(each.n, each.agreement_ci95[0]) for each in self.quality])

    @property
    def agreement_high(self) -> float:
        """The upper end of its interval."""
        return _mean([(each.n, each.agreement_ci95[1]) for each in self.quality])

    @property
    def exact_match(self) -> float:
        """Exact match in percent, over the questions of all data sets."""
        return _mean([(each.n, each.exact_match) for each in self.quality])


def beaten_by(rows: Sequence[Row]) -> list[str]:
    """For each backend, who is better than our fastest variant there: a line each, with the figures.

    Better is: agreement with float32 at least as good and faster, or better and as fast. Faster, and better agreement, is
    where the 95% intervals do not overlap.
    """
    backends = {name: None for row in rows for name in row.speed}
    return [line for backend in backends for line in _beaten_on(backend, rows)]


def _beaten_on(backend: str, rows: Sequence[Row]) -> Iterator[str]:
    timed = [row for row in rows if backend in row.speed and row.quality]
    ours = [row for row in timed if row.tool == OURS and row.numerics.endswith("fp32")]
    if not ours:
        return
    best = max(ours, key=lambda row: row.speed[backend].ratio["first"].median)
    ours_first = best.speed[backend].ratio["first"]
    for row in timed:
        first = row.speed[backend].ratio["first"]
        faster = row.agreement >= best.agreement and first.median_ci95[0] > ours_first.median_ci95[1]
        righter = row.agreement_low > best.agreement_high and first.median_ci95[1] >= ours_first.median_ci95[0]
        if row.tool != OURS and (faster or righter):
            yield (
                f"{backend}: {row.name} (agreement {row.agreement:.2f} %, {first.median:.2f} x float32) is better than "
                f"{best.name} ({best.agreement:.2f} %, {ours_first.median:.2f} x)"
            )


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as aligned text, reasons of failures below."""
    backends = list({name: None for row in rows for name in row.speed})
    header = ["quantised by", "exact %", "agree %", "size", *(f"{name}: x, vision x" for name in backends)]
    cells = [header, *(_cells(row, backends) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [*lines, *(note for row in rows for note in _notes(row))]


def _cells(row: Row, backends: Sequence[str]) -> list[str]:
    quality = [f"{row.exact_match:.2f}", f"{row.agreement:.2f}"] if row.quality else ["-", "-"]
    return [row.name, *quality, f"{row.size_ratio:.2f}", *(_speed(row, name) for name in backends)]


def _speed(row: Row, backend: str) -> str:
    if backend not in row.speed:
        return "fails" if backend in row.speed_errors else "-"
    ratio = row.speed[backend].ratio
    first, vision = ratio["first"], ratio["vision"]
    return f"{first.median:.2f} ({first.p10:.2f}-{first.p90:.2f}), {vision.median:.2f}"


def _notes(row: Row) -> Iterator[str]:
    if row.error is not None:
        yield f"{row.name}: {row.error}"
    for graph, reason in row.float32.items():
        yield f"{row.name}: {graph} stays float32: {reason}"
    for backend, reason in row.speed_errors.items():
        yield f"{row.name} on {backend}: {reason}"


def _mean(parts: Sequence[tuple[int, float]]) -> float:
    total = sum(count for count, _ in parts)
    return sum(count * value for count, value in parts) / total if total else 0.0
