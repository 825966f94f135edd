"""`edgevqa compare`: precisions and backends side by side, as a table, JSON, CSV and a page; and a gate for releases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.output import count_bar, note, print_json, print_table, print_text, progress_bar
from edgevqa.cli.row_text import counted, interval, milliseconds, number
from edgevqa.evaluation.comparing import CompareOptions, Comparison, worst_of
from edgevqa.evaluation.comparing import compare as run
from edgevqa.evaluation.rows import Row, numbers_of
from edgevqa.runtime.errors import CheckFailed, ConfigError
from edgevqa.runtime.staging import Staging, check_place, clear_write_errors

IDENTITY = ("bundle", "precision", "variant", "numerics", "backend", "dataset")


def compare(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="The bundles' folders.")],
    data: shared.DataOption,
    precisions: Annotated[
        str | None, typer.Option(metavar="P,P", help="Precisions or variants. Default: every precision it has, once.")
    ] = None,
    backends: Annotated[
        str, typer.Option(metavar="B,B", help="auto: each precision's fastest here. all: every installed one.")
    ] = "auto",
    samples: shared.SamplesOption = None,
    seed: shared.SeedOption = 0,
    threads: shared.ThreadsOption = 0,
    max_batch: shared.MaxBatchOption = 8,
    latency_runs: shared.LatencyRunsOption = 100,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML page.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every figure as CSV.")] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="EXPR", help="Exit with 1 if this holds. May be given again.")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not check the bundles' hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the rows as JSON.")] = False,
) -> None:
    """Compare precisions and backends: accuracy, latency, memory, size, energy.

    Every row is measured in a process of its own, on the same questions, and compared with the fp32 variant of the same
    bundle on the same backend; McNemar's test says whether a difference in accuracy is more than chance.

    A condition of --fail-if names figures of rows as the JSON does: PRECISION.FIELD or VARIANT.FIELD, the variant as the
    table prints it (int8-u8-fp32.latency_ms.next.p50) or with _ for every other sign (int8_u8_fp32). A precision means its
    variant without additions where there are several. In FIELD _ stands for every other sign
    (int8.by_type.yes_no.accuracy, fp16.mcnemar.p_value). It may use + - * / < <= > >= == != and, or, not. It is checked
    for every bundle and backend; one backend's row is int8_openvino.accuracy or row("int8", "openvino").accuracy, one
    bundle's row("int8", bundle="B").accuracy.

    Example:
      edgevqa compare bundle --data easy-vqa:test --precisions fp32,int8 --report report.html
      edgevqa compare bundle --data scenes:7:5000 --fail-if "int8.accuracy < fp32.accuracy - 0.5"

    Exit codes: 1 a condition of --fail-if holds, or a figure that it needs could not be measured.
    """
    options = CompareOptions(
        data=data,
        samples=samples,
        seed=seed,
        threads=threads,
        max_batch=max_batch,
        latency_runs=latency_runs,
        check=not no_verify,
        precisions=_listed("--precisions", precisions),
        backends=_listed("--backends", backends),
        fail_if=tuple(fail_if or ()),
    )
    if report is not None:
        from edgevqa.evaluation.report.page import check_report

        check_report(report)
    if table is not None and table.is_dir():
        raise ConfigError(f"--csv {table} is a folder; expected the name of a file, such as rows.csv.")
    for output in (report, table):
        if output is not None:
            check_place(output)
    with progress_bar("Checking") as progress, count_bar() as advance:
        found = run(bundles, options, advance=advance, progress=progress, note=note)
    _write(found, report, table, as_json=as_json)
    _judge(found)


def _listed(option: str, text: str | None) -> tuple[str, ...]:
    """The parts between commas."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ConfigError(f"{option} is '{text}'; expected names with commas between them.")
    return tuple(dict.fromkeys(parts))


def _write(found: Comparison, report: Path | None, table: Path | None, *, as_json: bool) -> None:
    if report is not None:
        from edgevqa.evaluation.report.page import write_report

        write_report(found, report)
        note(f"Report: {report}")
    if table is not None:
        _write_csv(found.rows, table)
        note(f"CSV: {table}")
    if as_json:
        print_json(found.as_json())
    else:
        print_comparison(found)
    for warning in found.warnings:
        note(f"warning: {warning}")


def _judge(found: Comparison) -> None:
    """Raise `CheckFailed` for conditions that hold or cannot be checked, and an error for rows that are missing."""
    held = [gate.message for gate in found.gates if gate.holds] + found.gate_errors
    missing = [f"not measured: {row.error}" for row in found.failed]
    if held:
        raise CheckFailed("\n".join([f"--fail-if: {text}" for text in held] + missing))
    if missing:
        raise worst_of(found.failed)("\n".join(missing))


def print_comparison(found: Comparison) -> None:
    """The rows as two tables, what they were measured on, and notes."""
    rows = found.rows
    several = len({row.bundle for row in rows}) > 1
    print_table(
        ["bundle"] * several
        + ["variant", "backend", ">accuracy %", ">95% interval", ">to fp32", ">p", ">same answers %"],
        [_named(row, _right(row), several=several) for row in rows],
    )
    energy = any(row.energy_j is not None for row in rows)
    columns = ["variant", "backend", ">first p50", ">p90", ">p99 ms", ">next p50", ">p90", ">p99 ms"]
    columns += [">answers/s", ">peak MB", ">size MB"] + [">J an answer"] * energy
    print_table(
        ["bundle"] * several + columns, [_named(row, _fast(row, energy=energy), several=several) for row in rows]
    )
    row = rows[0]
    print_text("")
    judged = f"accuracy over {row.scored:,} of them ({row.ci_method})" if row.ci_method else "none has an answer"
    timed = (
        f"{counted(row.latency_runs, 'single one')} timed after {row.warm_up_runs}"
        if row.latency_runs
        else "latency not timed"
    )
    print_text(f"{counted(row.n, 'question')} of {row.dataset}, {judged}; {timed}; p: McNemar's exact test.")
    for row in rows:
        if row.note:
            note(f"note: {row.name}: {row.note}")
    if row.energy_missing:
        note(f"note: no energy: {row.energy_missing}.")


def _named(row: Row, cells: list[str], *, several: bool) -> list[str]:
    return [*[PurePath(row.bundle).name] * several, row.variant, row.backend, *cells]


def _right(row: Row) -> list[str]:
    is_float = row.precision == "fp32"
    drop = None if row.accuracy_drop is None or is_float else 0.0 - row.accuracy_drop
    return [
        number(row.accuracy, 2),
        interval(row.ci95),
        "" if drop is None else f"{drop:+.2f}",
        "" if is_float or row.mcnemar is None else f"{row.mcnemar.p_value:.3f}",
        "" if is_float else number(row.agreement, 2),
    ]


def _fast(row: Row, *, energy: bool) -> list[str]:
    spreads = [row.latency_ms.get(name) for name in ("first", "next")]
    times = [(None, None, None) if spread is None else (spread.p50, spread.p90, spread.p99) for spread in spreads]
    return [
        *(milliseconds(value) for each in times for value in each),
        number(row.throughput_per_s, 1),
        number(row.peak_memory_mb, 0),
        number(row.size_mb, 1),
        *[number(row.energy_j, 3)] * energy,
    ]


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    """A line a row, a column a figure; figures that a row lacks are empty."""
    figures = [numbers_of(row) for row in rows]
    columns = list(dict.fromkeys(name for each in figures for name in each))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IDENTITY, *columns])
    for row, each in zip(rows, figures, strict=True):
        values = ["" if (value := each.get(name)) is None else value for name in columns]
        writer.writerow([*(getattr(row, name) for name in IDENTITY), *values])
    with clear_write_errors(path), Staging(path) as staging:
        staging.partial.write_text(text.getvalue(), encoding="utf-8")
        staging.commit()
