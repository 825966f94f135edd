"""The figures of the report as SVG: accuracy against latency, latency by graph, error by layer. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from edgevqa.evaluation.layers import Layer
from edgevqa.evaluation.report.colors import ACCENT, GRID, INK, MARKERS, MUTED, QUIET, WARNING, series

WIDTH_IN = 5.8
MOST_LAYERS = 25
_STYLE: Any = {  # what may be set is typed more narrowly in each matplotlib
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "edgevqa",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
_LETTER_PT = 5.0  # about the width of a letter of the names, and their height
_LINE_PT = 13.0
_NEAR = 20  # names further from their point get a line to it
_PLACES = tuple((dx, dy) for dy in (5, -12, 18, -25, 31, -38, 44, -51, 57, -64, 70) for dx in (8, -8))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row in the plot of accuracy against latency; `interval` is the accuracy's."""

    name: str
    group: str
    latency_ms: float
    accuracy: float
    interval: tuple[float, float] | None


def pareto(points: Sequence[Point], *, accuracy_label: str) -> str:
    """Each row as a point; the line joins those that no other row beats in both."""
    with rc_context(_STYLE):
        figure, axes = _canvas(3.9)
        groups = list(dict.fromkeys(point.group for point in points))
        colors = series(groups)
        best = frontier(points)
        axes.plot(
            [point.latency_ms for point in best],
            [point.accuracy for point in best],
            color=QUIET,
            linewidth=1.4,
            drawstyle="steps-post",
            zorder=1,
        )
        for place, group in enumerate(groups):
            of_group = [point for point in points if point.group == group]
            axes.scatter(
                [point.latency_ms for point in of_group],
                [point.accuracy for point in of_group],
                s=62,
                color=colors[group],
                marker=MARKERS[place % len(MARKERS)],
                zorder=3,
                label=group,
            )
            for point in of_group:
                if point.interval is not None:
                    axes.plot([point.latency_ms] * 2, point.interval, color=colors[group], alpha=0.35, linewidth=2)
        _limits(axes, points)
        axes.set_xlabel("next answer on a known picture, median (ms); left is faster")
        axes.set_ylabel(f"{accuracy_label}; up is better")
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, handletextpad=0.2)
        _label(figure, axes, points, {group: _dark(color) for group, color in colors.items()})
        return _svg(figure)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats or equals in both, from the fastest on."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def latency_bars(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A bar a row, cut into what each graph takes: `{row: {graph: ms}}`, the graphs in the order they run."""
    with rc_context(_STYLE):
        graphs = list(dict.fromkeys(graph for shares in rows.values() for graph in shares))
        colors = series(graphs)
        figure, axes = _canvas(1.25 + 0.42 * len(rows))
        names = list(rows)
        left = [0.0] * len(names)
        for graph in graphs:
            widths = [rows[name].get(graph, 0.0) for name in names]
            axes.barh(names, widths, left=left, height=0.62, color=colors[graph], label=graph.replace("_", " "))
            left = [done + width for done, width in zip(left, widths, strict=True)]
        longest = max(left)
        for place, total in enumerate(left):
            axes.text(total + 0.01 * longest, place, f"{total:.3g} ms", va="center", color=INK)
        axes.set_xlim(0, longest * 1.14)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("median of each graph in a first answer (ms)")
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, handlelength=1.0, columnspacing=1.2
        )
        return _svg(figure)


def layer_bars(layers: Sequence[Layer]) -> str:
    """The layers with the largest error when quantised; those that were kept high are marked."""
    with rc_context(_STYLE):
        shown = [layer for layer in layers if layer.local_error is not None][:MOST_LAYERS]
        figure, axes = _canvas(1.1 + 0.245 * len(shown))
        for kept, color, label in ((True, WARNING, "kept high"), (False, ACCENT, "quantised")):
            part = [(place, layer) for place, layer in enumerate(shown) if layer.high is kept]
            if part:
                axes.barh(
                    [place for place, _ in part],
                    [100 * (layer.local_error or 0.0) for _, layer in part],
                    height=0.68,
                    color=color,
                    label=label,
                )
        axes.margins(y=0.01)
        axes.set_yticks(range(len(shown)), [short(layer.full_name) for layer in shown], fontsize=8.5)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("relative error of its output (%)")
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9.5, handlelength=1.0)
        return _svg(figure)


def short(name: str, most: int = 44) -> str:
    """A long name with its middle left out."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def _canvas(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _limits(axes: Axes, points: Sequence[Point]) -> None:
    """Room for the names, and no accuracy above 100."""
    latencies = [point.latency_ms for point in points]
    ends = [end for point in points for end in (point.interval or (point.accuracy, point.accuracy))]
    spread = max(max(latencies) - min(latencies), 0.1 * max(latencies))
    axes.set_xlim(max(0.0, min(latencies) - 0.45 * spread), max(latencies) + 0.45 * spread)
    height = max(max(ends) - min(ends), 0.5)
    axes.set_ylim(min(ends) - 0.12 * height, max(ends) + 0.12 * height)


def _label(figure: Figure, axes: Axes, points: Sequence[Point], colors: Mapping[str, str]) -> None:
    """Write each point's name where it hides no other name and no point, inside the axes."""
    figure.draw_without_rendering()  # the layout decides where the axes are
    to_pt = 72.0 / figure.dpi
    inside = [float(each) * to_pt for each in axes.get_window_extent().extents]
    spots = [
        [float(each) * to_pt for each in axes.transData.transform((each.latency_ms, each.accuracy))] for each in points
    ]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for point, (x, y) in sorted(zip(points, spots, strict=True), key=lambda item: -item[0].accuracy):
        width = _LETTER_PT * len(point.name)
        boxes = [(_box(x, y, dx, dy, width), (dx, dy)) for dx, dy in _PLACES]
        free = [each for each in boxes if inside[0] <= each[0][0] and each[0][2] <= inside[2]]
        free = [each for each in free if not any(_meet(each[0], other) for other in taken)]
        box, (dx, dy) = (free or boxes)[0]
        taken.append(box)
        axes.annotate(
            point.name,
            (point.latency_ms, point.accuracy),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            fontsize=9,
            color=colors[point.group],
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkB": 4} if abs(dy) > _NEAR else None,
        )


def _dark(color: str) -> str:
    """A darker shade that is read well as text."""
    red, green, blue = (0.62 * float(part) for part in to_rgb(color))
    return to_hex((red, green, blue))


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, dx: float, dy: float, width: float) -> _Box:
    left = x + dx if dx > 0 else x + dx - width
    return left, y + dy - 3, left + width, y + dy - 3 + _LINE_PT


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _svg(figure: Figure) -> str:
    """The drawing alone, without the XML header; as wide as the page lets it be."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", stream.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
