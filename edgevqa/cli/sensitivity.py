"""`edgevqa sensitivity`: which layers suffer from being quantised, as a table with bars and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.output import note, print_json, print_table, print_text, step_bar
from edgevqa.runtime.errors import require
from edgevqa.runtime.sensitivity import Effect, LayerSensitivity

if TYPE_CHECKING:
    from edgevqa.runtime.sensitivity import SensitivityReport

BAR_WIDTH = 12
EIGHTHS = " ▏▎▍▌▋▊▉█"


def sensitivity(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A calibrated bundle's folder.")],
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help="Questions; those used to calibrate are left out.")
    ],
    time_limit: Annotated[str, typer.Option(metavar="TIME", help="For example 90s, 10m, 1h.")] = "10m",
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="Questions a layer. Default: what the time allows.")
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", help="Layers to measure on answers, by local error.")] = 20,
    target: Annotated[
        str | None, typer.Option(metavar="T", help="Whose INT8 is measured. Default: the bundle's target.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the questions.")] = 0,
    smooth: Annotated[bool, typer.Option("--smooth/--no-smooth", help="With SmoothQuant, as quantize does.")] = True,
    backend: shared.BackendOption = "auto",
    threads: shared.ThreadsOption = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a figure: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the ranking as JSON.")] = False,
) -> None:
    """Rank the layers by what quantising them costs.

    Every layer's own error comes from the calibration; the worst ones are then quantised alone, and left out alone, and
    asked questions that calibration has not seen. The bundle is not changed. An interrupted run goes on when it is
    started again.

    Example:
      edgevqa sensitivity bundle --data scenes:7:5000 --time-limit 10m --plot layers.svg
    """
    for module in ("onnx", "onnx_ir"):
        require(module, extra="export", purpose="Measuring sensitivity")
    from edgevqa.calibration.search.clock import parse_duration
    from edgevqa.calibration.search.figure import check_figure, draw_sensitivity
    from edgevqa.calibration.search.ranking import SensitivityOptions
    from edgevqa.calibration.search.ranking import sensitivity as run_sensitivity

    if plot is not None:
        check_figure(plot)
    options = SensitivityOptions(
        data=data,
        samples=samples,
        time_limit_s=parse_duration(time_limit),
        seed=seed,
        worst=worst,
        backend=backend,
        threads=threads,
        target=target,
        smooth=smooth,
    )
    with step_bar("Sensitivity") as report:
        found = run_sensitivity(bundle, options, report=report)
    if plot is not None:
        draw_sensitivity(found, plot)
        note(f"Figure: {plot}")
    if as_json:
        print_json(found)
        return
    print_sensitivity(found)


def print_sensitivity(report: SensitivityReport) -> None:
    """The ranking as a table with bars, and what the figures rest on."""
    columns = ("layer", ">error", ">alone", ">nats", ">all but", ">nats", ">time", "harm")
    print_table(columns, _rows(report.layers))
    if report.all_quantised is not None:
        whole = report.all_quantised
        accuracy = "" if whole.accuracy is None else f", {whole.accuracy:.1f} % right ({whole.drop:+.2f} points lost)"
        print_text(f"All layers quantised: {whole.agreement:.1f} % agree with the float model{accuracy}")
    print_text(
        f"{report.numerics} on {report.backend}, {report.samples} questions of {report.dataset}, {report.seconds:.0f} s"
    )
    print_text("error: of the layer's own output, relative; alone: % of answers as before when it alone is quantised")
    print_text(
        "all but: the same when all layers but it are quantised; nats: how much less likely the float answers are"
    )
    print_text(
        "harm: the mean shift of their log-likelihood when it alone is quantised, in nats; * predicted from the error"
    )
    print_text(f"time: % of a float answer: {report.share_source}")
    for warning in report.warnings:
        note(f"warning: {warning}")


def _rows(layers: Sequence[LayerSensitivity]) -> Iterator[tuple[str, ...]]:
    highest = max((row.harm for row in layers), default=0.0)
    for row in layers:
        mark = "*" if row.predicted else ""
        yield (
            row.layer,
            f"{row.local_error:.4f}",
            *_cells(row.only),
            *_cells(row.all_but),
            f"{100 * row.share:.1f}",
            f"{bar(row.harm, highest)} {row.harm:.2g}{mark}",
        )


def _cells(effect: Effect | None) -> tuple[str, str]:
    return ("-", "-") if effect is None else (f"{effect.agreement:.1f}", f"{effect.log_likelihood_cost:+.4f}")


def bar(value: float, highest: float) -> str:
    """A bar of eighths of a character, `BAR_WIDTH` wide for `highest`."""
    eighths = round(8 * BAR_WIDTH * value / highest) if highest > 0 else 0
    full, part = divmod(max(eighths, 0), 8)
    return "█" * full + EIGHTHS[part].strip()
