"""`edgevqa demo`: the whole story on the reference model, from a checkpoint to a report that proves its INT8 variant."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli.export import NEEDED, print_exported
from edgevqa.cli.output import count_bar, print_table, print_text, sample_bar, step_bar
from edgevqa.runtime.errors import require

CALIBRATED_WITH, COMPARED_ON = "scenes:3:1024", "scenes:7:200"  # no package and no download are needed for these


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where all goes; an earlier bundle is replaced.")
    ] = Path("edgevqa-demo"),
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out the comparison with PyTorch, the engines and the report.")
    ] = False,
) -> None:
    """Export the reference model, ask it, quantise it, build engines, compare: the whole story.

    Engines are built where TensorRT-RTX is installed, the report is written where the extra `report` is.

    Example:
      edgevqa demo
    """
    for module in (*NEEDED, "onnxruntime"):
        require(module, extra="cpu,export", purpose="The demo")
    bundle = output / "reference.bundle"
    output.mkdir(parents=True, exist_ok=True)
    _export(bundle, fast)
    print_text("\n2. Ask, with ONNX Runtime and without torch:")
    _ask(bundle)
    _quantize(bundle, fast)
    if not fast:
        _build(bundle)
        _compare(bundle, output / "report.html")
    print_text(f'\nAsk it yourself: edgevqa ask {_quoted(bundle)} PICTURE "QUESTION" --precision int8')


def _export(bundle: Path, fast: bool) -> None:
    from edgevqa.export.options import ExportOptions
    from edgevqa.export.run import export

    print_text(f"1. Export: edgevqa export reference -o {_quoted(bundle)}")
    with step_bar("Exporting") as report:
        exported = export("reference", bundle, ExportOptions(verify=not fast, overwrite=True), report=report)
    print_exported(exported, bundle)


def _ask(bundle: Path) -> None:
    """Ask every packaged question and say which answers are right."""
    from edgevqa.export.samples import PICTURES, sample_questions
    from edgevqa.runtime import Pipeline

    rows: list[tuple[str, ...]] = []
    wrong = 0
    with Pipeline.load(bundle, backend="onnxruntime") as pipeline:
        pipeline.warm_up()
        seen: set[str] = set()
        for sample in sample_questions():
            answer = pipeline.answer(PICTURES / sample.image, sample.question)
            right = answer.text == sample.answer
            wrong += not right
            verdict = "right" if right else f"wrong: {sample.answer}"
            again = "" if sample.image not in seen else "trunk reused"
            seen.add(sample.image)
            total = f"{answer.timing_ms['total']:.1f}"
            rows.append((sample.image, sample.question, answer.text, f"{answer.confidence:.3f}", verdict, total, again))
    print_table(("picture", "question", "answer", ">confidence", "truth", ">ms", ""), rows)
    print_text(f"\n{len(rows) - wrong} of {len(rows)} answers are right.")


def _quantize(bundle: Path, fast: bool) -> None:
    from edgevqa.calibration import CalibrateOptions, QuantizeOptions, calibrate, quantize
    from edgevqa.cli.quantize import print_variant

    print_text(f"\n3. Calibrate: edgevqa calibrate {_quoted(bundle)} --data {CALIBRATED_WITH} --samples 256")
    with sample_bar("Calibrating") as advance:
        calibrated = calibrate(bundle, CalibrateOptions(data=CALIBRATED_WITH, samples=256), report=advance)
    print_text(f"256 questions observed in {calibrated.seconds:.0f} s")
    targets = ("cpu", *(("openvino",) if _installed("openvino") else ()), *(("rtx",) if _engines(fast) else ()))
    print_text(f"\n4. Quantise: edgevqa quantize {_quoted(bundle)} --precision int8 --target {','.join(targets)}")
    options = QuantizeOptions(precision="int8", targets=targets, data=CALIBRATED_WITH)
    with sample_bar("Quantising") as advance:
        done = quantize(bundle, options, report=advance)
    for variant in done.variants:
        print_variant(variant, done.float_size_bytes)


def _build(bundle: Path) -> None:
    from edgevqa.cli.build import print_built

    if not _installed("tensorrt_rtx"):
        print_text("\n5. Engines are left out: TensorRT-RTX is not installed (pip install 'edgevqa[tensorrt-rtx]').")
        return
    from edgevqa.export.engine.build import build
    from edgevqa.export.engine.options import BuildOptions

    print_text(f"\n5. Build engines, which needs no GPU: edgevqa build {_quoted(bundle)} --target rtx --precision int8")
    with step_bar("Building") as report:
        built = build(bundle, BuildOptions(target="rtx", precision="int8"), report=report)
    print_built(built)


def _compare(bundle: Path, page: Path) -> None:
    from edgevqa.cli.compare import print_comparison
    from edgevqa.evaluation import CompareOptions, compare

    drawn = _installed("matplotlib") and _installed("jinja2")
    shown = f" --report {_quoted(page)}" if drawn else ""
    print_text(f"\n6. Compare: edgevqa compare {_quoted(bundle)} --data {COMPARED_ON} --precisions fp32,int8{shown}")
    options = CompareOptions(data=COMPARED_ON, precisions=("fp32", "int8"), backends=("all",), latency_runs=50)
    with count_bar() as advance:
        found = compare([bundle], options, advance=advance)
    print_comparison(found)
    if drawn:
        from edgevqa.evaluation.report.page import write_report

        write_report(found, page)
        print_text(f"Open {page} in a browser: it shows every question whose answer changed.")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _engines(fast: bool) -> bool:
    return not fast and _installed("tensorrt_rtx")
