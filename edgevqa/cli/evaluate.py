"""`edgevqa evaluate`: how right and how fast a bundle answers a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgevqa.cli import shared
from edgevqa.cli.output import count_bar, note, print_json, print_pairs, print_table, progress_bar
from edgevqa.cli.row_text import counted, interval, milliseconds, number
from edgevqa.evaluation.evaluating import EvaluateOptions, Evaluation
from edgevqa.evaluation.evaluating import evaluate as run
from edgevqa.evaluation.rows import Row
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.staging import Staging, check_place, clear_write_errors, readable_bytes


def evaluate(
    bundle: shared.BundleArgument,
    data: shared.DataOption,
    samples: shared.SamplesOption = None,
    seed: shared.SeedOption = 0,
    precision: shared.PrecisionOption = None,
    backend: shared.BackendOption = "auto",
    threads: shared.ThreadsOption = 0,
    max_batch: shared.MaxBatchOption = 8,
    latency_runs: shared.LatencyRunsOption = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write every answer as JSON lines.")
    ] = None,
    no_verify: shared.NoVerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> None:
    """Measure how right and how fast a bundle answers a data set.

    VQA accuracy with its 95% confidence interval, exact match and ANLS, also by kind of question; the share of answers
    that are those of the fp32 variant; latency, throughput, peak memory, size and, where there is a sensor, energy.
    All is measured in a process of its own. Data without answers gives the agreement with fp32 alone.

    Example:
      edgevqa evaluate bundle --data easy-vqa:test --precision int8
      edgevqa evaluate bundle --data scenes:7:5000 --samples 500 --json --output answers.jsonl
    """
    options = EvaluateOptions(
        data=data,
        samples=samples,
        seed=seed,
        precision=precision,
        backend=backend,
        threads=threads,
        max_batch=max_batch,
        latency_runs=latency_runs,
        check=not no_verify,
    )
    if output is not None and output.is_dir():
        raise ConfigError(f"--output {output} is a folder; expected the name of a file, such as answers.jsonl.")
    if output is not None:
        check_place(output)
    with progress_bar("Checking") as progress, count_bar() as advance:
        found = run(bundle, options, advance=advance, progress=progress, note=note)
    try:
        if output is not None:
            _write(output, found)
    finally:  # a disk that became full takes the answers, not the figures
        for warning in found.warnings:
            note(f"warning: {warning}")
        if as_json:
            print_json(found.as_json())
        else:
            _print_row(found.row)


def _write(output: Path, found: Evaluation) -> None:
    lines = b"".join(msgspec.json.encode(each) + b"\n" for each in found.predictions())
    with clear_write_errors(output), Staging(output) as staging:
        staging.partial.write_bytes(lines)
        staging.commit()


def _print_row(row: Row) -> None:
    print_pairs(
        (
            ("variant", f"{row.variant} on {row.backend}"),
            ("data", f"{row.dataset}, {counted(row.n, 'question')}"),
            (
                "accuracy",
                f"{number(row.accuracy, 2)} %, 95% interval {interval(row.ci95)}"
                if row.ci95
                else "no answers to judge by",
            ),
            ("exact match", f"{number(row.exact_match, 2)} %"),
            ("ANLS", f"{number(row.anls, 2)} %"),
            (
                "agreement",
                f"{number(row.agreement, 2)} % of the answers are those of fp32"
                if row.changed is not None
                else "no fp32 answers",
            ),
            ("throughput", f"{row.throughput_per_s:.1f} answers a second, {row.max_batch} at once"),
            ("peak memory", f"{number(row.peak_memory_mb, 0)} MB, the whole process"),
            ("size", readable_bytes(round(row.size_mb * 1e6))),
            (
                "energy",
                f"{number(row.energy_j, 3)} J an answer" if row.energy_j is not None else f"none: {row.energy_missing}",
            ),
        )
    )
    if row.latency_ms:
        spreads = {f"{name} answer": spread for name, spread in row.latency_ms.items()} | row.per_graph_ms
        print_table(
            ("milliseconds", ">p50", ">p90", ">p99"),
            [(name, *(milliseconds(each) for each in (s.p50, s.p90, s.p99))) for name, s in spreads.items()],
            title=f"{counted(row.latency_runs, 'single question')} after {row.warm_up_runs}",
        )
    if len(row.by_type) > 1:
        print_table(
            ("kind of question", ">n", ">accuracy", ">95% interval", ">exact match", ">ANLS"),
            [
                (name, f"{f.n:,}", number(f.accuracy, 2), interval(f.ci95), number(f.exact_match, 2), number(f.anls, 2))
                for name, f in row.by_type.items()
            ],
        )
    if row.note:
        note(f"note: {row.note}")
