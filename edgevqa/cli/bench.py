"""`edgevqa bench`: latency of a bundle without a data set, of its graphs or of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.output import note, print_json, print_table, print_text, progress_bar
from edgevqa.runtime.benchmark import LatencyReport, Spread, measure
from edgevqa.runtime.profiling import LayerTime, ProfileReport, profile

LONGEST_TABLE = 40


def bench(
    bundle: shared.BundleArgument,
    runs: Annotated[int, typer.Option(metavar="N", help="First and next answers to time.")] = 20,
    warm_up: Annotated[int, typer.Option(metavar="N", help="Untimed runs before.")] = 3,
    profile_layers: Annotated[bool, typer.Option("--profile", help="The time of each layer instead.")] = False,
    precision: shared.PrecisionOption = None,
    backend: shared.FastestOption = "auto",
    threads: shared.ThreadsOption = 0,
    no_verify: shared.NoVerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> None:
    """Measure latency without a data set: every graph, the first answer on a picture and the next one.

    The picture is the same noise each time; loading and warm-up are left out. With --profile, the time of every Linear
    layer in a first answer, beside its error and whether it stays high where the variant has a report of them.

    Example:
      edgevqa bench bundle --runs 50
      edgevqa bench bundle --profile --precision int8
    """
    with progress_bar("Checking") as progress:
        report = (profile if profile_layers else measure)(
            bundle,
            runs=runs,
            warm_up_runs=warm_up,
            progress=progress,
            note=note,
            precision=precision,
            backend=backend,
            threads=threads,
            check=not no_verify,
        )
    if as_json:
        print_json(report)
    elif isinstance(report, ProfileReport):
        _print_profile(report)
    else:
        print_table(("milliseconds", ">p50", ">p90", ">p99", ">lowest", ">highest"), _rows(report))
        print_text(
            f"{report.variant} on {report.backend}, {report.runs} runs after {report.warm_up_runs}; "
            f"{_tokens(report)}loaded in {report.load_ms:.0f} ms"
        )


def _tokens(report: LatencyReport) -> str:
    """How many were generated, of models that generate any."""
    first, following = report.tokens["first"], report.tokens["next"]
    decoder = report.stage_ms.get("language_decoder")
    rate = "" if decoder is None else f", {1e3 / decoder.p50:,.0f} a second in the decoder alone"
    return f"{first} and {following} tokens generated{rate}; " if first or following else ""


def _rows(report: LatencyReport) -> Iterator[tuple[str, ...]]:
    for name, spread in report.latency_ms.items():
        yield _row(f"{name} answer", spread)
    for stage, spread in report.stage_ms.items():
        yield _row(f"{stage} (a token)" if stage == "language_decoder" else stage, spread)


def _row(name: str, spread: Spread) -> tuple[str, ...]:
    values = (spread.p50, spread.p90, spread.p99, spread.lowest, spread.highest)
    return (name, *(f"{value:.2f}" for value in values))


def _print_profile(report: ProfileReport) -> None:
    """The slowest layers, and what the others take together."""
    told = any(row.kept_high is not None for row in report.layers)
    columns = ("layer", ">ms an answer", ">share", ">runs", "run as", *((">local error", "") if told else ()))
    shown, rest = report.layers[:LONGEST_TABLE], report.layers[LONGEST_TABLE:]
    print_table(columns, (_layer_row(row, told=told) for row in shown))
    total_ms = sum(row.time_ms for row in report.layers)
    if rest:
        print_text(f"and {len(rest)} more with {sum(row.time_ms for row in rest):.3f} ms; --json writes all")
    tokens = f" with {report.tokens} tokens" if report.tokens else ""
    print_text(
        f"{report.variant} on {report.backend}: {total_ms:.2f} ms in layers of a first answer{tokens} "
        f"(median of {report.runs}); the graphs took {sum(report.graph_ms.values()):.2f} ms while being profiled"
    )


def _layer_row(row: LayerTime, *, told: bool) -> tuple[str, ...]:
    figures = (row.layer, f"{row.time_ms:.3f}", f"{row.share:.1%}", f"{row.runs:g}", ", ".join(row.kinds))
    if not told:
        return figures
    error = "" if row.local_error is None else f"{row.local_error:.4f}"
    return (*figures, error, "kept high" if row.kept_high else "")
