"""`edgevqa bench`: latency of a bundle without a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli.output import print_json, print_table, print_text, progress_bar
from edgevqa.runtime.benchmark import LatencyReport, Spread, measure


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    runs: Annotated[int, typer.Option(metavar="N", help="First and next answers to time.")] = 20,
    warm_up: Annotated[int, typer.Option(metavar="N", help="Untimed runs before.")] = 3,
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="A precision or variant of the bundle. Default: fp32.")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="B", help="What runs the graphs.")] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", help="0: as many as the backend likes.")] = 0,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not check the bundle's hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> None:
    """Measure latency without a data set: every graph, the first answer on a picture and the next one.

    The picture is the same noise each time; loading and warm-up are left out.

    Example:
      edgevqa bench bundle --runs 50
    """
    with progress_bar("Checking") as progress:
        report = measure(
            bundle,
            runs=runs,
            warm_up_runs=warm_up,
            progress=progress,
            precision=precision,
            backend=backend,
            threads=threads,
            check=not no_verify,
        )
    if as_json:
        print_json(report)
        return
    print_table(("milliseconds", ">p50", ">p90", ">p99", ">lowest", ">highest"), _rows(report))
    print_text(
        f"{report.variant} on {report.backend}, {report.runs} runs after {report.warm_up_runs}; "
        f"{report.tokens['first']} and {report.tokens['next']} tokens generated; loaded in {report.load_ms:.0f} ms"
    )


def _rows(report: LatencyReport) -> Iterator[tuple[str, ...]]:
    for name, spread in report.latency_ms.items():
        yield _row(f"{name} answer", spread)
    for stage, spread in report.stage_ms.items():
        yield _row(f"{stage} (a token)" if stage == "language_decoder" else stage, spread)


def _row(name: str, spread: Spread) -> tuple[str, ...]:
    values = (spread.p50, spread.p90, spread.p99, spread.lowest, spread.highest)
    return (name, *(f"{value:.2f}" for value in values))
