"""What holds for every family: the contract's small random models, exported, lowered and built; one row a checkpoint.

    python -m benchmarks.families [--only NAME]... [-o benchmarks/results/families.json] [--docs docs/families.md]

Each class of tests/families that makes a checkpoint is one row: its graphs, the worst difference from eager PyTorch, how many
answers were the eager model's (20 greedy tokens where it generates), the agreement of its INT8 and FP16 answers on pictures
(random weights: this shows the mechanics, not the accuracy of a trained model), and the TensorRT-RTX engines of its FP16 and
INT8 graphs, built without a GPU. The table in the docs is written from the rows. Exit code 1: a row failed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from edgevqa.calibration import CalibrateOptions, QuantizeOptions, calibrate, quantize
from edgevqa.export import ExportOptions, export
from edgevqa.export.engine import child
from edgevqa.export.engine.capabilities import settled
from edgevqa.export.engine.flavours import load_toolkit
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.export.engine.protocol import Job
from edgevqa.export.families import FAMILIES
from edgevqa.export.samples import questions_by_picture
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
RESULT, DOCS = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "families.md"
DATA, SAMPLES = "scenes:3:64", 8
LOWERED = ("fp16", "u8-fp32", "s8-fp16")


class Row(msgspec.Struct, kw_only=True):
    """One checkpoint of a family. `agreement` is percent of answers equal to float32's, by numerics."""

    family: str
    checkpoint: str
    task: str = ""
    graphs: list[str] = []
    worst_difference: float | None = None
    answers: int = 0
    answers_identical: int = 0
    agreement: dict[str, float] = {}
    engines: dict[str, dict[str, float]] = {}
    seconds: float = 0.0
    error: str = ""

    @property
    def engine_count(self) -> int:
        return sum(int(each["engines"]) for each in self.engines.values())


def main() -> None:
    """Run every row, print, write."""
    arguments = _arguments()
    rows: list[Row] = []
    work = list(_contracts(arguments.only))
    with ProcessPoolExecutor(max_workers=arguments.jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(_measure, *zip(*work, strict=True)):
            rows.append(row)
            print(_told(row), flush=True)
    _write(arguments.output, rows)
    if not arguments.only:
        arguments.docs.write_text(_page(rows), encoding="utf-8")
    sys.exit(1 if any(row.error for row in rows) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a family; may be repeated; writes no page")
    parser.add_argument("--jobs", type=int, default=2, help="checkpoints at once")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    return parser.parse_args()


def _contracts(only: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each family with the test classes (`module:class`) that make its checkpoints, in the registry's order."""
    sys.path.insert(0, str(ROOT))
    from tests.families.contract import FamilyContract

    found: dict[str, list[type]] = {}
    for file in sorted((ROOT / "tests" / "families").glob("test_*.py")):
        module = importlib.import_module(f"tests.families.{file.stem}")
        for name, each in inspect.getmembers(module, inspect.isclass):
            if name.startswith("Test") and issubclass(each, FamilyContract) and each.__module__ == module.__name__:
                found.setdefault(each.family, []).append(each)
    for family in FAMILIES:
        if not only or family in only:
            yield from ((family, f"{each.__module__}:{each.__name__}") for each in found.get(family, []))


def _measure(family: str, place: str) -> Row:
    sys.path.insert(0, str(ROOT))
    module, _, name = place.partition(":")
    contract: type = getattr(importlib.import_module(module), name)
    row = Row(family=family, checkpoint=name.removeprefix("Test"))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgevqa-families-") as scratch:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(scratch) / "cache")
        try:
            _fill(row, contract, Path(scratch))
        except EdgeVQAError as error:
            row.error = str(error)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _fill(row: Row, contract: type, scratch: Path) -> None:
    folder, path = scratch / "checkpoint", scratch / "family.bundle"
    folder.mkdir()
    contract.make(folder)  # type: ignore[attr-defined]
    manifest = export(str(folder), path, ExportOptions()).bundle.manifest
    parity = manifest.parity["fp32"]
    row.task, row.graphs = manifest.task, list(manifest.variants["fp32"].graphs)
    row.worst_difference = max(each.max_abs_diff for each in parity.rows)
    row.answers, row.answers_identical = parity.answers_compared, parity.answers_identical
    calibrate(path, CalibrateOptions(data=DATA, samples=SAMPLES))
    quantize(path, QuantizeOptions(precision="fp16", targets=("rtx",)))
    quantize(path, QuantizeOptions(precision="int8", targets=("cpu", "rtx")))
    variants = Bundle.open(path).manifest.variants
    names = {variant.numerics: name for name, variant in variants.items() if variant.numerics in LOWERED}
    expected = _answers(path, "fp32")
    for numerics, name in names.items():
        found = _answers(path, name)
        row.agreement[numerics] = 100 * sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)
    for numerics in ("fp16", "s8-fp16"):
        row.engines[numerics] = _build(Bundle.open(path), names[numerics], scratch)


def _build(bundle: Bundle, variant: str, scratch: Path) -> dict[str, float]:
    """An engine of every graph, built in this process: how many, their megabytes and seconds in all."""
    options, graphs = BuildOptions(target="rtx", batch=(1, 2)), bundle.variant(variant).graphs
    ranges = axis_ranges(bundle.manifest, graphs, options)
    numerics, toolkit = bundle.variant(variant).numerics, load_toolkit(options.row)
    total, seconds = 0, 0.0
    for name, spec in graphs.items():
        engine = scratch / f"{name}.engine"
        job = Job(
            graph=name,
            onnx=str(bundle.graph_path(variant, name)),
            engine=str(engine),
            profiles=graph_profiles(name, spec, ranges),
            options=settled(options, numerics, toolkit),
            numerics=numerics,
            timing_cache=None,
        )
        seconds += child.build(job, child.Stop(), lambda phase: None).seconds
        total += engine.stat().st_size
    return {"engines": len(graphs), "size_mb": round(total / 1e6, 3), "seconds": round(seconds, 2)}


def _answers(path: Path, variant: str) -> list[str]:
    with Pipeline.load(path, precision=variant, backend="onnxruntime", check=False) as pipeline:
        return [
            pipeline.answer(rgb, question, max_new_tokens=8).text
            for rgb, questions in questions_by_picture()
            for question in questions[:2]
        ]


def _told(row: Row) -> str:
    if row.error:
        return f"{row.family:24}{row.checkpoint:28}FAILED: {row.error}"
    agreement = ", ".join(f"{name} {value:.0f} %" for name, value in row.agreement.items())
    return (
        f"{row.family:24}{row.checkpoint:28}{row.worst_difference:.1e}  {row.answers_identical}/{row.answers} answers  "
        f"{agreement}  {row.engine_count} engines  {row.seconds:.0f} s"
    )


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": describe_machine(), "load_average": os.getloadavg(), "rows": msgspec.to_builtins(list(rows))}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")


def _page(rows: Sequence[Row]) -> str:
    """The page of the docs: one row a family, what it takes, and what was verified."""
    lines = [
        "# Families",
        "",
        "Written by `python -m benchmarks.families` (figures: `benchmarks/results/families.json`); do not edit. Every figure",
        "is of small random models in the true architecture, saved as the hub has them: they show that graphs, runtime and",
        "commands are right, not how accurate or fast a trained model is. *Parity*: the largest difference of any graph's",
        "output from eager PyTorch. *Answers* equal to the eager model's: 20 greedy tokens where it generates, in batches",
        "with padding. *INT8, FP16*: made by `edgevqa calibrate` and `edgevqa quantize`, and asked. *Engines*: TensorRT-RTX",
        "engines of every FP16 and INT8 graph, built without a GPU, not run.",
        "",
        "| family | what it is | checkpoints tried | graphs | parity | answers | INT8, FP16 | engines | from |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in FAMILIES.items():
        own = [row for row in rows if row.family == name]
        lines.append(_docs_row(name, entry.summary, own, entry.source))
    return "\n".join(lines) + "\n"


def _docs_row(name: str, summary: str, rows: Sequence[Row], source: str) -> str:
    if not rows:
        held = "the reference model: [README](../README.md), `tests/export`"
        return f"| `{name}` | {summary} | {held} | | | | | | {source} |"
    graphs = dict.fromkeys(graph for row in rows for graph in row.graphs)
    worst = max(row.worst_difference or 0.0 for row in rows)
    answers = f"{sum(row.answers_identical for row in rows)} of {sum(row.answers for row in rows)}"
    lowered = "yes" if all(len(row.agreement) == len(LOWERED) for row in rows) else "in part"
    shown = ", ".join(f"`{graph}`" for graph in graphs)
    engines = sum(row.engine_count for row in rows)
    checkpoints = ", ".join(row.checkpoint for row in rows)
    return f"| `{name}` | {summary} | {checkpoints} | {shown} | {worst:.1e} | {answers} | {lowered} | {engines} | {source} |"


if __name__ == "__main__":
    main()
