"""`edgevqa quantize`: variants of lower precision are added to a bundle, with what each layer costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgevqa.cli import shared
from edgevqa.cli.hints import ask_line
from edgevqa.cli.output import note, print_json, print_table, print_text, sample_bar
from edgevqa.cli.row_text import counted, how_quantised
from edgevqa.runtime.errors import require
from edgevqa.runtime.staging import readable_bytes

if TYPE_CHECKING:
    from edgevqa.calibration.quantization.answer_check import AnswerCheck
    from edgevqa.calibration.quantization.run import Quantized, QuantizedVariant
    from edgevqa.calibration.quantization.variant_report import LayerReport, VariantReport
    from edgevqa.calibration.search.search import MixedResult
    from edgevqa.runtime.manifest import VariantSpec

NEEDED = (("onnx_ir", "export"), ("onnxruntime", "cpu"))
MOST_ROWS = 40  # of a table of layers; the rest is in the report
_MB = 1e6


def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A calibrated bundle's folder; it is added to.")],
    precision: Annotated[str, typer.Option("--precision", metavar="P", help="fp16, bf16, int8, fp8 or mixed.")],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="T", help="Where it will run; may be repeated. Default: the bundle's target."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Questions to check answers with; those calibrated on are left out."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many of them to ask.")] = 200,
    min_agreement: Annotated[
        float, typer.Option(metavar="PERCENT", help="Answers that must stay as they were, or nothing is written.")
    ] = 90.0,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="PTS", help="With mixed alone: points of accuracy that may be lost. Default: 0.5."),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With mixed alone: for the search, for example 30m. Default: no limit."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="How ranges are chosen: auto, max, percentile-99.9, -99.99, -99.999, entropy, mse. Default: calibrate's.",
        ),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth/--no-smooth", help="Move outliers into weights: SmoothQuant.")
    ] = True,
    bias_correction: Annotated[bool, typer.Option("--bias-correction", help="Add the mean error to biases.")] = False,
    decoder: Annotated[
        str, typer.Option(metavar="MODE", help="The language decoder: int8, weight-int8, weight-int4 or high.")
    ] = "int8",
    encoder: Annotated[str, typer.Option(metavar="MODE", help="The language encoder: the same.")] = "int8",
    block_size: Annotated[
        int | None, typer.Option(metavar="N", help="Inputs that share a scale in weight-int8 and -int4. Default: 32.")
    ] = None,
    residual: Annotated[
        bool,
        typer.Option("--residual", help="Quantise residual adds too, where they survive it. TensorRT's tools do."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the questions.")] = 0,
    threads: shared.ThreadsOption = 0,
    as_json: shared.JsonOption = False,
) -> None:
    """Add variants of lower precision to a bundle, and say what each layer costs.

    Layers that quantising would harm stay high and are listed. With --data the new variants are asked questions that
    calibration has not seen, and a bundle that has no calibration is calibrated first. The bundle is changed at the end,
    or not at all.

    A variant is called PRECISION-NUMERICS, such as int8-u8-fp32. What --decoder, --encoder, --block-size and --residual
    change is added (int8-u8-fp32-decoder-w4), so that both stay in the bundle. Ask, compare and build take either name as
    --precision; int8 means the one without additions, where there is one. The same name again replaces.

    Example:
      edgevqa quantize bundle --precision int8
      edgevqa quantize bundle --precision int8 --decoder weight-int4
      edgevqa quantize bundle --precision mixed --data easy-vqa:test --max-drop 0.5 --time-limit 30m
    """
    for module, extra in NEEDED:
        require(module, extra=extra, purpose="Quantising a model")
    from edgevqa.calibration.quantization.run import QuantizeOptions
    from edgevqa.calibration.quantization.run import quantize as run_quantize
    from edgevqa.calibration.search.clock import parse_duration

    options = QuantizeOptions(
        precision=cast("Any", precision),  # the options check their values themselves
        targets=tuple(name.strip() for given in target or () for name in given.split(",")),
        data=data,
        samples=samples,
        min_agreement=min_agreement,
        max_drop=max_drop,
        time_limit_s=None if time_limit is None else parse_duration(time_limit),
        method=method,
        smooth=smooth,
        bias_correction=bias_correction,
        decoder=cast("Any", decoder),
        encoder=cast("Any", encoder),
        block_size=block_size,
        residual=residual,
        seed=seed,
        threads=threads,
    )
    with sample_bar("Quantising") as report:
        done = run_quantize(bundle, options, report=report)
    if done.calibrated:
        note(f"{bundle} had no calibration: it was calibrated on a part of {data} first.")
    for warning in done.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(_as_json(done, bundle))
        return
    for variant in done.variants:
        print_variant(variant, done.float_size_bytes)
    note(ask_line(bundle, done.bundle.manifest, precision=done.variants[0].name))


def print_variant(variant: QuantizedVariant, float_size_bytes: int) -> None:
    """A variant's table of graphs, the layers kept high, what its answers are, its size."""
    if variant.report is None:
        _print_cast(variant)
    else:
        _print_graphs(variant.report, variant.spec)
        _print_high(variant.report.kept_high)
        _print_residuals(variant.report)
        search = variant.report.search
        if search is not None:
            print_text(_search_text(search))
        for warning in [*variant.report.warnings, *(search.warnings if search is not None else [])]:
            note(f"warning: {warning}")
    if variant.check is not None:
        print_text(_check_text(variant.check))
    ratio = variant.size_bytes / float_size_bytes
    print_text(
        f"{variant.name}: {readable_bytes(variant.size_bytes)}, {ratio:.3f} of fp32's {readable_bytes(float_size_bytes)}"
    )


def _print_graphs(report: VariantReport, spec: VariantSpec) -> None:
    columns = ("graph", "how", ">Linear layers", ">quantised", ">kept high", ">% of the work", ">worst local error")
    rows = [
        (
            name,
            how_quantised(spec, name),
            f"{graph.layers:,}",
            f"{graph.quantised:,}",
            f"{graph.high:,}",
            f"{100 * graph.quantised_macs:.1f}",
            "-" if graph.worst_local_error is None else f"{graph.worst_local_error:.4f}",
            readable_bytes(graph.size_bytes),
        )
        for name, graph in report.graphs.items()
    ]
    print_table((*columns, ">size"), rows, title=f"{report.variant} ({report.numerics})")
    if report.overflow and (count := sum(map(len, report.overflow.values()))):
        print_text(f"In FP32 inside FP16 stays {counted(count, 'node')}; the report lists what.")


def _print_high(layers: Sequence[LayerReport]) -> None:
    rows = [
        (row.name, "-" if row.local_error is None else f"{row.local_error:.4f}", row.reason or "") for row in layers
    ]
    print_table(("kept high", ">local error", "because"), rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        print_text(f"and {len(rows) - MOST_ROWS:,} more, which the report lists")


def _print_residuals(report: VariantReport) -> None:
    high = [row for row in report.residuals if row.high]
    if report.residuals:
        print_text(f"{len(report.residuals) - len(high)} of {len(report.residuals)} residual adds are quantised.")
    if high:
        rows = [(f"{row.graph}/{row.add}", row.reason or "") for row in high]
        print_table(("residual add kept high", "because"), rows[:MOST_ROWS])


def _print_cast(variant: QuantizedVariant) -> None:
    rows = [
        (name, f"{spec.parameters:,}", f"{spec.nodes.get('Cast', 0):,}") for name, spec in variant.spec.graphs.items()
    ]
    print_table(("graph", ">parameters", ">Casts"), rows, title=variant.name)


def _search_text(search: MixedResult) -> str:
    low, high = search.effect.drop_ci95
    return (
        f"Search: {search.effect.drop:+.2f} points of {search.metric} lost on {search.effect.samples} questions "
        f"(95 % interval {low:+.2f} to {high:+.2f}; allowed {search.max_drop:g}), {search.all_quantised.drop:+.2f} with all "
        f"layers quantised; {100 * search.quantised_share:.0f} % of a float answer's time is quantised; "
        f"{counted(search.trials, 'candidate')}, {search.seconds:.0f} s"
    )


def _check_text(check: AnswerCheck) -> str:
    accuracy = ""
    if check.accuracy is not None and check.float_accuracy is not None:
        accuracy = f"; {check.accuracy:.1f} % right, fp32 {check.float_accuracy:.1f} %"
    low, high = check.drop_ci95
    return (
        f"{check.agreement:.1f} % of {check.samples} answers are fp32's{accuracy} "
        f"({check.drop:+.2f} points lost, 95 % interval {low:+.2f} to {high:+.2f}; {check.dataset}, on {check.backend})"
    )


def _as_json(done: Quantized, bundle: Path) -> dict[str, object]:
    return {
        "bundle": str(bundle),
        "seconds": round(done.seconds, 2),
        "calibrated": done.calibrated,
        "warnings": done.warnings,
        "variants": list(_variants_json(done)),
    }


def _variants_json(done: Quantized) -> Iterator[dict[str, object]]:
    for variant in done.variants:
        yield {
            "variant": variant.name,
            "precision": variant.spec.precision,
            "numerics": variant.spec.numerics,
            "weight_only": variant.spec.weight_only,
            "high_graphs": variant.spec.high_graphs,
            "size_mb": variant.size_bytes / _MB,
            "size_ratio": variant.size_bytes / done.float_size_bytes,
            "check": variant.check,
            "report": variant.report,
        }
