"""The bars that quantisation is held to, measured on the reference model's bundle with whole test sets.

    python -m benchmarks.quantization_bars BUNDLE [--data scenes:3:4000] [--samples 512] [--questions N]
        [--max-drop 0.5 0.05] -o benchmarks/results/quantization_bars.json

BUNDLE (`edgevqa export reference`) is copied, calibrated and quantised; each variant answers all 9,673 test questions of
easy-vqa and 5,000 questions about generated scenes, as float32 does on the same backend. Every bar must hold on every
set: FP16 agrees with float32 on 99.9 %; INT8 loses at most 0.5 points of exact match and agrees on 99.3 %; a mixed
variant loses at most what it was allowed, of VQA accuracy. FP16 is emulated here: the CPU backend rounds to FP16 and
computes in FP32. Exit code 1: a bar fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.quantization import ours
from benchmarks.quantization.answering import Answers, Quality, ask, judge
from benchmarks.quantization.peer_variants import size_mb
from edgevqa.calibration.quantization.run import Lowered, QuantizeOptions
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.selection import choose_samples
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.sessions import BACKENDS

RESULT = Path(__file__).parent / "results" / "quantization_bars.json"
DATA = "scenes:3:4000"  # easy-vqa alone lacks what pictures of several shapes do to the activations
TESTS = ("easy-vqa:test", "scenes:7:5000")
FP16_AGREEMENT, INT8_AGREEMENT, INT8_DROP = 99.9, 99.3, 0.5
EMULATED = "FP16 rounding emulated by the CPU backend"
SEED = 0
SEARCH_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A variant to make, the backend that answers with it, and the bars; `drop` is of `metric`, in points."""

    name: str
    precision: Lowered
    numerics: str
    backend: str
    agreement: float | None = None
    drop: float | None = None
    metric: str = "exact_match"
    label: str = ""


class Result(msgspec.Struct, kw_only=True):
    """A case as it went. `failures` says which bars were missed, and by how much; empty when all hold."""

    name: str
    backend: str
    label: str
    bars: dict[str, float]
    variant: str | None = None
    quantize_s: float = 0.0
    size_ratio: float = 0.0
    quality: list[Quality] = []
    fp32: list[Quality] = []
    failures: list[str] = []


class Float:
    """Answers of the float32 variant, asked once a backend."""

    def __init__(self, path: Path, tests: Mapping[str, list[Sample]]) -> None:
        self._path, self.tests = path, tests
        self._answers: dict[str, list[Answers]] = {}

    def on(self, backend: str) -> list[Answers]:
        """The answers on a backend."""
        if backend not in self._answers:
            self._answers[backend] = ask(self._path, "fp32", backend, self.tests)
        return self._answers[backend]


def main() -> None:
    """Quantise, evaluate, print, write."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="edgevqa-bars-") as scratch:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(scratch) / "cache")
        path = Path(scratch) / "bars.bundle"
        shutil.copytree(arguments.bundle, path)
        ours.calibrate_bundle(path, data=arguments.data, samples=arguments.samples, seed=SEED)
        tests = {spec: choose_samples(open_dataset(spec), arguments.questions, SEED) for spec in TESTS}
        floats, results = Float(path, tests), list[Result]()
        for case in cases(arguments.max_drop):
            results.append(_run(case, path, floats, arguments.data))
            print("\n".join(lines_of(results[-1])), flush=True)
            _write(arguments, path, results)
    sys.exit(1 if any(result.failures for result in results) else 0)


def cases(max_drops: list[float]) -> Iterator[Case]:
    """Every variant and its bars; what needs a backend that is not installed is left out."""
    openvino = BACKENDS["openvino"].installed()
    yield Case(
        name="fp16",
        precision="fp16",
        numerics="fp16",
        backend="onnxruntime",
        agreement=FP16_AGREEMENT,
        label=EMULATED,
    )
    for numerics, backend, label in (
        ("u8-fp32", "onnxruntime", ""),
        ("s8-fp32", "openvino", ""),
        ("s8-fp16", "onnxruntime", EMULATED),
    ):
        if backend == "openvino" and not openvino:
            continue
        yield Case(
            name=f"int8 {numerics}",
            precision="int8",
            numerics=numerics,
            backend=backend,
            agreement=INT8_AGREEMENT,
            drop=INT8_DROP,
            label=label,
        )
    for drop in max_drops:
        yield Case(
            name=f"mixed, max-drop {drop:g}",
            precision="mixed",
            numerics="u8-fp32",
            backend="onnxruntime",
            drop=drop,
            metric="accuracy",
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default=DATA, help="what is calibrated and searched with")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--questions", type=int, help="of each test set; default: all, as the bars ask")
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.5, 0.05], help="budgets of mixed, in points")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


def _run(case: Case, path: Path, floats: Float, data: str) -> Result:
    bars = {"agreement": case.agreement, f"{case.metric} drop": case.drop}
    result = Result(
        name=case.name,
        backend=case.backend,
        label=case.label,
        bars={name: value for name, value in bars.items() if value is not None},
    )
    start = time.perf_counter()
    try:
        result.variant = ours.add(path, _options(case, data), case.numerics)
        result.quantize_s = round(time.perf_counter() - start, 1)
        found = ask(path, result.variant, case.backend, floats.tests)
    except EdgeVQAError as error:
        result.failures = [str(error)]
        return result
    bundle = Bundle.open(path)
    result.size_ratio = round(size_mb(bundle, result.variant) / size_mb(bundle, "fp32"), 3)
    for answers, reference in zip(found, floats.on(case.backend), strict=True):
        samples = floats.tests[answers.dataset]
        result.quality = [*result.quality, judge(answers, reference, samples)]
        result.fp32 = [*result.fp32, judge(reference, reference, samples)]
    result.failures = list(missed(case, result))
    return result


def _options(case: Case, data: str) -> QuantizeOptions:
    target = ours.TARGETS.get(case.numerics, "cpu")
    if case.precision != "mixed" or case.drop is None:
        return QuantizeOptions(precision=case.precision, targets=(target,), min_agreement=0)
    return QuantizeOptions(
        precision="mixed", targets=(target,), data=data, max_drop=case.drop, time_limit_s=SEARCH_LIMIT_S
    )


def missed(case: Case, result: Result) -> Iterator[str]:
    """The bars that do not hold, set by set."""
    for quality, reference in zip(result.quality, result.fp32, strict=True):
        if case.agreement is not None and quality.agreement < case.agreement:
            yield f"{quality.dataset}: agreement {quality.agreement:.3f} % is under {case.agreement} %"
        drop = getattr(reference, case.metric) - getattr(quality, case.metric)
        if case.drop is not None and drop > case.drop:
            yield f"{quality.dataset}: {case.metric} falls by {drop:.3f} points, more than {case.drop:g}"


def lines_of(result: Result) -> Iterator[str]:
    """The result for people."""
    said = f" ({result.label})" if result.label else ""
    yield f"{result.name} on {result.backend}{said}: {'FAILS' if result.failures else 'holds'}"
    for quality, reference in zip(result.quality, result.fp32, strict=True):
        yield (
            f"    {quality.dataset}, {quality.n} questions: agreement {quality.agreement:.3f} %, exact match "
            f"{quality.exact_match:.3f} % (float32 {reference.exact_match:.3f} %), size {result.size_ratio:.2f} x"
        )
    yield from (f"    {failure}" for failure in result.failures)


def _write(arguments: argparse.Namespace, path: Path, results: list[Result]) -> None:
    source = Bundle.open(path).manifest.source
    written = {
        "machine": describe_machine(),
        "model": {"source": source.id, "sha256": source.sha256},
        "calibration": {"data": arguments.data, "samples": arguments.samples, "seed": SEED},
        "results": msgspec.to_builtins(results),
        "failed": [result.name for result in results if result.failures],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")


if __name__ == "__main__":
    main()
