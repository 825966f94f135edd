"""`edgevqa calibrate`: real samples go through a bundle's float32 model, and what was seen is added to the bundle."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.output import note, print_json, print_table, print_text, sample_bar
from edgevqa.cli.row_text import counted
from edgevqa.runtime.errors import require

if TYPE_CHECKING:
    from edgevqa.calibration.observation.run import Calibrated
    from edgevqa.calibration.observation.summary import Summary

NEEDED = (("onnx_ir", "export"), ("onnxruntime", "cpu"))


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder; it is added to.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Pictures and questions: easy-vqa:train, scenes:SEED:N, an annotation file, or a folder with "
            "questions.csv, .jsonl or .txt.",
        ),
    ],
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many to use; better 128 or more.")] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which samples are chosen.")] = 0,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="M",
            help="How `quantize` is to choose its ranges from what was seen, unless it is told: auto, max, "
            "percentile-99.9, -99.99, -99.999, entropy, mse.",
        ),
    ] = "auto",
    threads: shared.ThreadsOption = 0,
    as_json: shared.JsonOption = False,
) -> None:
    """Run a bundle's model on real questions and note its ranges, for `quantize`.

    The fp32 model runs once for every question, as `edgevqa ask` would run it, and how large the values inside it become is
    written into the bundle (calibration/). Its graphs and answers stay as they are: smaller variants are made from that by
    `edgevqa quantize`. The data needs no right answers, but pictures and questions like those that the model will be asked;
    noise and blank pictures are refused. An interrupted calibration goes on where it was, and another one takes its place.

    Example:
      edgevqa calibrate bundle --data easy-vqa:train --samples 512
      edgevqa calibrate bundle --data my-pictures
    """
    for module, extra in NEEDED:
        require(module, extra=extra, purpose="Calibrating a model")
    from edgevqa.calibration.observation.run import CalibrateOptions
    from edgevqa.calibration.observation.run import calibrate as run_calibrate

    options = CalibrateOptions(data=data, samples=samples, seed=seed, method=method, threads=threads)
    with sample_bar("Calibrating") as report:
        done = run_calibrate(bundle, options, report=report)
    for warning in [*done.summary.warnings, *done.left_out]:
        note(f"warning: {warning}")
    if as_json:
        print_json(_as_json(done, bundle))
        return
    columns = (">runs", ">Linear inputs", ">residual streams", ">float tensors", ">largest |x|", "in tensor")
    print_table(("graph", *columns), _rows(done.summary))
    _print_end(done, bundle)


def _rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    for name, graph in summary.graphs.items():
        tensor, largest = next(iter(graph.largest.items()), ("-", 0.0))
        counts = (graph.runs, graph.linear_inputs, graph.residual_streams, graph.float_tensors)
        yield name, *map(str, counts), f"{largest:,.5g}", tensor


def _print_end(done: Calibrated, bundle: Path) -> None:
    summary = done.summary
    print_text("")
    earlier = f", {done.resumed_samples} of them in an earlier run" if done.resumed_samples else ""
    words = done.bundle.manifest.text is not None
    asked = (
        f"{counted(summary.samples, 'question')} about {counted(summary.pictures, 'picture')}"
        if words
        else counted(summary.pictures, "picture")
    )
    print_text(f"{asked} of {summary.dataset}{earlier}, in {done.seconds:.0f} s; set {summary.sha256[:12]}")
    note(f"Quantise it: edgevqa quantize {shlex.quote(str(bundle))} --precision int8")


def _as_json(done: Calibrated, bundle: Path) -> dict[str, object]:
    return {
        "bundle": str(bundle),
        "seconds": round(done.seconds, 2),
        "resumed_samples": done.resumed_samples,
        "calibration": done.summary,
    }
