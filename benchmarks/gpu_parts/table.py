"""The figures side by side as people read them: one line a runner, one line a graph, and what did not run and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_parts.figures import Figures, Roofline
from edgevqa.runtime.benchmark import Spread

PERCENTILES = ("p50", "p90", "p99")


def table(results: dict[str, dict[str, Any]], roofline: Roofline | None, batches: Sequence[int]) -> list[str]:
    """All runners of all models, then their graphs, then what did not run and why."""
    cells = [_cells(model, name, row, batches) for model, name, row in _rows(results)]
    lines = [_bounds(roofline), *_lines(_heads(batches), cells)]
    graphs = [line for model, name, row in _rows(results) for line in _graphs(model, name, row["figures"], batches)]
    if graphs:
        heads = ["model", "runner", "graph", *(f"b{batch} ms {name}" for batch in batches for name in PERCENTILES)]
        lines += ["", *_lines(heads, graphs)]
    lines.append("")
    for model, result in results.items():
        lines += [f"{model}: {runner} not run: {reason}" for runner, reason in result["not_run"].items()]
        for runner, row in result["rows"].items():
            lines += [f"{model}: {runner}, {what}: {reason}" for what, reason in row["figures"].not_run.items()]
    return lines


def _rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(model, name, row) for model, result in results.items() for name, row in result["rows"].items()]


def _bounds(roofline: Roofline | None) -> str:
    if roofline is None:
        return "the device's own bounds were not measured"
    return (
        f"{roofline.device}: {roofline.matmul_tflops:.3g} TFLOP/s in {roofline.dtype} products of "
        f"{roofline.matmul_size}, copying {roofline.copy_gb_per_s:,.0f} GB/s"
    )


def _heads(batches: Sequence[int]) -> list[str]:
    """Milliseconds of first and next answers, tokens and answers a second (b8: in batches of 8), memory, energy, shares."""
    times = [f"{which} ms {name}" for which in ("first", "next") for name in PERCENTILES]
    rates = [f"b{batch} answers/s" for batch in batches]
    rest = ["tokens/s", *rates, "RAM MB", "GPU MB", "J/answer", "vision", "agree"]
    return ["model", "runner", "precision", *times, *rest]


def _cells(model: str, runner: str, row: dict[str, Any], batches: Sequence[int]) -> list[str]:
    figures: Figures = row["figures"]
    times = [_times(figures.latency_ms.get(which)) for which in ("first", "next")]
    rates = [_rate(batch, figures.answer_ms.get(batch)) for batch in batches]
    return [
        *(model, runner, row["precision"], *times[0], *times[1]),
        *(_or_dash(figures.decode_tokens_per_s, ".0f"), *rates),
        *(_or_dash(figures.process_mb, ",.0f"), _or_dash(figures.gpu_mb, ",.0f")),
        _or_dash(figures.joules_per_answer, ".3f"),
        _or_dash(max(row["utilisation"].values(), default=None), ".1%"),
        _or_dash(row["agreement"], ".2%"),
    ]


def _graphs(model: str, runner: str, figures: Figures, batches: Sequence[int]) -> list[list[str]]:
    return [
        [model, runner, graph, *(time for batch in batches for time in _times(found.get(batch)))]
        for graph, found in figures.graph_ms.items()
    ]


def _times(spread: Spread | None) -> list[str]:
    return ["-"] * 3 if spread is None else [f"{value:.2f}" for value in (spread.p50, spread.p90, spread.p99)]


def _rate(batch: int, spread: Spread | None) -> str:
    return "-" if spread is None else f"{batch / spread.p50 * 1e3:.1f}"


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell, words to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    ]


def _or_dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)
