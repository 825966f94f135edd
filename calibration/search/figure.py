"""The sensitivity ranking as a picture: what quantising each layer costs, beside the time it would save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevqa.runtime.errors import InputError, require
from edgevqa.runtime.sensitivity import LayerSensitivity, SensitivityReport
from edgevqa.runtime.staging import Staging, check_place, clear_write_errors

FORMATS = (".svg", ".png", ".pdf")
LAYERS = 40
MEASURED, PREDICTED, TIME = "#b03a2e", "#e6b0aa", "#2e6da4"


def check_figure(path: Path) -> None:
    """Raise `InputError` for a file that cannot become a figure, `MissingExtraError` where matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: expected a file that ends in {', '.join(FORMATS)}.")
    require("matplotlib.figure", extra="report", purpose="Drawing a figure")
    check_place(path)


def draw_sensitivity(report: SensitivityReport, path: Path) -> None:
    """Write the figure of the worst layers to `path`; its ending chooses the format. Raises what `check_figure` does."""
    check_figure(path)
    rows = report.layers[:LAYERS]
    figure: Any = require("matplotlib.figure", extra="report", purpose="Drawing a figure").Figure(
        figsize=(11, 1.6 + 0.24 * len(rows)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _harm(left, rows)
    _shares(right, rows)
    left.set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(
        f"What quantising each layer costs: {report.numerics}, {report.samples} questions of {report.dataset}"
    )
    with clear_write_errors(path), Staging(path) as staging:
        figure.savefig(staging.partial, format=path.suffix[1:].lower(), dpi=150)
        staging.commit()


def _harm(axes: Any, rows: Sequence[LayerSensitivity]) -> None:
    """Bars of harm on a scale that is straight near 0 and logarithmic above, so that small layers are seen too."""
    places = range(len(rows))
    colors = [PREDICTED if row.predicted else MEASURED for row in rows]
    axes.barh(places, [row.harm for row in rows], color=colors)
    axes.set_yticks(places, [row.layer for row in rows], fontsize=8)
    smallest = min((row.harm for row in rows if row.harm > 0), default=1e-3)
    axes.set_xscale("symlog", linthresh=max(smallest, 1e-6))
    axes.set_xlabel("shift of the float answers' log-likelihood, nats (pale: predicted)", fontsize=9)
    axes.grid(axis="x", alpha=0.3)


def _shares(axes: Any, rows: Sequence[LayerSensitivity]) -> None:
    axes.barh(range(len(rows)), [100 * row.share for row in rows], color=TIME)
    axes.set_xlabel("% of a float answer", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
