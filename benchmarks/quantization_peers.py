r"""Our INT8 beside that of onnxruntime, ModelOpt and NNCF: the same float32 graphs, the same calibration samples, one runtime.

    python -m benchmarks.quantization_peers BUNDLE --data easy-vqa:train --test easy-vqa:test --test scenes:7:5000
        [--samples 512] [--questions N] [--rounds 100] [--only PREFIX]... -o benchmarks/results/quantization_peers.json

BUNDLE is copied, not changed. Every graph's real inputs are captured while the float32 model answers the calibration
samples, and every tool quantises every graph from them, in a process of its own. Its graphs become a further variant of
the bundle. A graph that a tool fails on stays float32, and the table says so. Speed is compared with float32 on the same
backend, in turn, question by question. Exit code 1: another project's INT8 is better than ours on a backend (as right or
righter, and clearly faster; or clearly righter, and as fast). A small model's times are mostly overhead: for speed, give
the bundle of `benchmarks.large_int8` as well, without --test.

The environment (Python 3.11; ModelOpt's own requirements would bring an older onnx and a GPU build of onnxruntime):

    python -m venv peers && . peers/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1 nncf==3.4.0 onnx-ir onnxscript easy-vqa -e .
    pip install --no-deps nvidia-modelopt==0.47.0 onnx_graphsurgeon onnxconverter-common onnxslim polygraphy omegaconf \
        nvidia-ml-py scipy PuLP colorama lief ninja
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.quantization import ours
from benchmarks.quantization.answering import Answers, Quality, ask, judge
from benchmarks.quantization.captured import capture
from benchmarks.quantization.peer_graphs import Source, prepare, quantize_graphs
from benchmarks.quantization.peer_variants import add_variant, size_mb
from benchmarks.quantization.recipes import RECIPES, Recipe
from benchmarks.quantization.rows import OURS, Row, beaten_by, table
from benchmarks.quantization.speed import compare_speed
from edgevqa.calibration.quantization.run import Lowered, QuantizeOptions
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.selection import choose_samples
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.sessions import BACKENDS

TOOLS = ("edgevqa", "onnx", "onnxruntime", "openvino", "nvidia-modelopt", "nncf", "torch")
RUN_ON = ("onnxruntime", "openvino")
OUR_ROWS: tuple[tuple[Lowered, str], ...] = (
    ("int8", "u8-fp32"),
    ("int8", "s8-fp32"),
    ("int8", "s8-fp16"),
    ("mixed", "u8-fp32"),
)
PICTURES_TIMED_ON = "scenes:7:256"
RESULT = Path(__file__).parent / "results" / "quantization_peers.json"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows share: the copy of the bundle, the samples, and what keeps the rows on the disk after each step."""

    path: Path
    data: str
    calibration: list[Sample]
    tests: dict[str, list[Sample]]
    backends: list[str]
    answered_on: str
    rounds: int
    save: Callable[[Sequence[Row]], None]


def main() -> None:
    """Quantise, evaluate, time, print, write."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="edgevqa-peers-") as scratch:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(scratch) / "cache")
        path = Path(scratch) / "peers.bundle"
        shutil.copytree(arguments.bundle, path)
        rows = _measure(arguments, path, Path(scratch) / "peers")
    print("\n".join(table(rows)))
    lost = beaten_by(rows)
    print("\n".join(lost) if lost else "no other tool is better than ours on a backend")
    sys.exit(1 if lost else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="easy-vqa:train", help="what is calibrated with")
    parser.add_argument("--test", action="append", default=[], help="a data set to be right on; may be repeated")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--questions", type=int, help="of each --test; default: all")
    parser.add_argument("--answered-on", choices=RUN_ON, default="onnxruntime", help="the backend of the answers")
    parser.add_argument("--rounds", type=int, default=100, help="timed rounds a variant and backend")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="rows whose names begin so; may be repeated")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, path: Path, folder: Path) -> list[Row]:
    _say(f"calibrating with {arguments.samples} samples of {arguments.data}")
    calibration = ours.calibrate_bundle(path, data=arguments.data, samples=arguments.samples, seed=arguments.seed)
    tests = {spec: choose_samples(open_dataset(spec), arguments.questions, arguments.seed) for spec in arguments.test}
    setting = Setting(
        path=path,
        data=arguments.data,
        calibration=calibration,
        tests=tests,
        backends=[name for name in RUN_ON if BACKENDS[name].installed()],
        answered_on=arguments.answered_on,
        rounds=arguments.rounds,
        save=lambda rows: _write(arguments, path, calibration, rows),
    )
    only = tuple(arguments.only or [""])
    rows = [*_quantize_ours(setting, only), *_quantize_peers(setting, folder, only)]
    setting.save(rows)
    _evaluate(setting, rows)
    _time(setting, rows)
    return rows


def _quantize_ours(setting: Setting, only: tuple[str, ...]) -> list[Row]:
    rows: list[Row] = []
    for precision, numerics in OUR_ROWS:
        name = f"{OURS}-{numerics}" if precision == "int8" else f"{OURS}-{precision}-{numerics}"
        if not name.startswith(only):
            continue
        row = Row(name=name, tool=OURS, settings=f"edgevqa quantize --precision {precision}", numerics=numerics)
        start = time.perf_counter()
        try:
            row.variant = ours.add(setting.path, _our_options(setting, precision, numerics), numerics)
        except EdgeVQAError as error:
            row.error = str(error)
        row.seconds = round(time.perf_counter() - start, 1)
        rows.append(_sized(row, Bundle.open(setting.path)))
    return rows


def _our_options(setting: Setting, precision: Lowered, numerics: str) -> QuantizeOptions:
    data = setting.data if precision == "mixed" else None  # mixed is searched with held-out samples of it
    return QuantizeOptions(precision=precision, targets=(ours.TARGETS[numerics],), data=data)


def _quantize_peers(setting: Setting, folder: Path, only: tuple[str, ...]) -> list[Row]:
    recipes = [recipe for recipe in RECIPES if recipe.name.startswith(only)]
    if not recipes:
        return []
    bundle = Bundle.open(setting.path)
    feeds = capture(bundle, setting.calibration, limit=len(setting.calibration))
    sources = prepare(bundle, feeds, folder / "fp32")
    return [_quantize_with(recipe, setting.path, sources, folder) for recipe in recipes]


def _quantize_with(recipe: Recipe, path: Path, sources: Sequence[Source], folder: Path) -> Row:
    row = Row(name=recipe.name, tool=recipe.tool, settings=recipe.settings, numerics=recipe.numerics)
    outcome = quantize_graphs(recipe, sources, folder)
    row.seconds, row.float32 = round(outcome.seconds, 1), outcome.errors
    bundle = Bundle.open(path)
    if outcome.files:
        bundle = add_variant(bundle, recipe, outcome, sources)
        row.variant = recipe.name
    else:
        row.error = "failed on every graph"
    return _sized(row, bundle)


def _sized(row: Row, bundle: Bundle) -> Row:
    if row.variant is not None:
        row.size_mb = round(size_mb(bundle, row.variant), 3)
        row.size_ratio = round(size_mb(bundle, row.variant) / size_mb(bundle, "fp32"), 3)
    _say(f"{row.name}: quantised in {row.seconds:.0f} s, {len(row.float32)} graphs left float32")
    return row


def _evaluate(setting: Setting, rows: list[Row]) -> None:
    if not setting.tests:
        return
    float_answers = ask(setting.path, "fp32", setting.answered_on, setting.tests)
    for row in rows:
        if row.variant is None:
            continue
        try:
            found = ask(setting.path, row.variant, setting.answered_on, setting.tests)
        except Exception as error:  # noqa: BLE001 (see `_time`)
            row.error = f"{setting.answered_on}: {_reason(error)}"
            continue
        row.quality = [_judge(setting, *pair) for pair in zip(found, float_answers, strict=True)]
        _say(f"{row.name}: exact match {row.exact_match:.2f} %, agreement {row.agreement:.2f} %")
        setting.save(rows)


def _judge(setting: Setting, answers: Answers, reference: Answers) -> Quality:
    return judge(answers, reference, setting.tests[answers.dataset])


def _time(setting: Setting, rows: list[Row]) -> None:
    samples = list(open_dataset(PICTURES_TIMED_ON))
    for backend in setting.backends:
        for row in rows:
            if row.variant is None:
                continue
            try:
                found = compare_speed(setting.path, row.variant, samples, backend=backend, rounds=setting.rounds)
            except Exception as error:  # noqa: BLE001 (whatever a graph of another tool does to the runtime is told)
                row.speed_errors = {**row.speed_errors, backend: _reason(error)}
                continue
            row.speed = {**row.speed, backend: found}
            _say(f"{row.name} on {backend}: {found.ratio['first'].median:.2f} x float32")
            setting.save(rows)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, EdgeVQAError) else f"{type(error).__name__}: {error}"


def _write(arguments: argparse.Namespace, path: Path, calibration: Sequence[Sample], rows: Sequence[Row]) -> None:
    bundle = Bundle.open(path)
    written = {
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "tools": {name: version for name in TOOLS if (version := _version(name)) is not None},
        "model": {"source": bundle.manifest.source.id, "sha256": bundle.manifest.source.sha256},
        "calibration": {"data": arguments.data, "samples": len(calibration), "seed": arguments.seed},
        "answered_on": arguments.answered_on,
        "timed_on": PICTURES_TIMED_ON,
        "fp32_size_mb": round(size_mb(bundle, "fp32"), 3),
        "rows": msgspec.to_builtins(list(rows)),
        "beaten_by": beaten_by(rows),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
