"""`edgevqa export`: a checkpoint becomes a bundle, compared with PyTorch on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.hints import ask_line
from edgevqa.cli.output import note, print_json, print_table, print_text, step_bar
from edgevqa.runtime.errors import require
from edgevqa.runtime.manifest import GraphSpec, ParityRow, ParitySpec
from edgevqa.runtime.staging import readable_bytes

if TYPE_CHECKING:
    from edgevqa.export.run import Exported

NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "optimum", "safetensors", "yaml")


def export(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="`reference`, a folder, a hub id, or an official .pth with --config."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The folder to write.")],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="YAML", help="The yaml of an official checkpoint.")
    ] = None,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Where relative names in the yaml are looked up.")
    ] = Path(),
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of a hub id.")] = None,
    target: Annotated[str, typer.Option("--target", help="Where it will run; see `edgevqa targets`.")] = "cpu",
    precision: Annotated[str, typer.Option("--precision", help="fp32, the only one of this version.")] = "fp32",
    opset: Annotated[int, typer.Option("--opset", metavar="N", help="ONNX opset; default: the target's.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with PyTorch; fail if it differs.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Export a model to a bundle of ONNX graphs.

    Every graph is compared with eager PyTorch on random and on real samples, and every answer end to end. A bundle that
    differs is not written (exit code 1).

    Example:
      edgevqa export reference -o bundle
      edgevqa export checkpoint_best.pth --config qavit.yaml -o bundle
    """
    for module in NEEDED:
        require(module, extra="export", purpose="Exporting a model")
    from edgevqa.export.options import ExportOptions
    from edgevqa.export.run import export as run_export

    options = ExportOptions(
        config=config,
        root=root,
        revision=revision,
        target=target,
        precision=precision,
        opset=opset,
        verify=verify,
        overwrite=overwrite,
    )
    with step_bar("Exporting") as report:
        exported = run_export(source, output, options, report=report)
    if as_json:
        manifest = exported.bundle.manifest
        print_json({"bundle": str(output), "seconds": round(exported.seconds, 2), "manifest": manifest})
        return
    print_exported(exported, output)
    if exported.bundle.manifest.target == "jetson-orin-legacy":
        from edgevqa.export.trtexec import FLOAT_REASON, trtexec_lines

        print_text(f"\nOn the board, in {output}, with TensorRT 8.6 (upgrading to JetPack 6.1 is the better way):")
        for line in trtexec_lines(exported.bundle):
            print_text(line)
        note(f"{FLOAT_REASON} 'edgevqa build' prints these lines again, with --batch and the like.")
    note(ask_line(output, exported.bundle.manifest))


def print_exported(exported: Exported, output: Path) -> None:
    """The table of graphs with what was compared, and the size of the whole."""
    _print_graphs(exported.bundle.manifest.variants["fp32"].graphs, exported.parity)
    _print_end(exported, output)


def _print_graphs(graphs: dict[str, GraphSpec], parity: ParitySpec | None) -> None:
    columns = ("graph", ">parameters", ">nodes", ">opset", ">random: max |diff|", ">real: max |diff|", ">cosine")
    print_table(columns, [(*_size_cells(name, spec), *_parity_cells(name, parity)) for name, spec in graphs.items()])


def _size_cells(name: str, spec: GraphSpec) -> tuple[str, str, str, str]:
    return name, f"{spec.parameters:,}", f"{sum(spec.nodes.values()):,}", str(spec.opset)


def _parity_cells(graph: str, parity: ParitySpec | None) -> tuple[str, str, str]:
    rows = [row for row in parity.rows if row.graph == graph] if parity else []
    if not rows:
        return "-", "-", "-"
    return _worst(rows, "random"), _worst(rows, "real"), f"{min(row.cosine for row in rows):.7f}"


def _worst(rows: list[ParityRow], samples: str) -> str:
    found = [row.max_abs_diff for row in rows if row.samples == samples]
    return f"{max(found):.1e}" if found else "-"


def _print_end(exported: Exported, output: Path) -> None:
    size = readable_bytes(sum(file.size_bytes for file in exported.bundle.manifest.files()))
    print_text("")
    if exported.parity is None:
        note("Not compared with PyTorch (--no-verify).")
    else:
        tolerance = max(row.tolerance for row in exported.parity.rows)
        print_text(
            f"All graphs are within {tolerance:.0e} of PyTorch; "
            f"{exported.parity.answers_identical} of {exported.parity.answers_compared} answers are identical."
        )
        for what in exported.parity.left_out:
            note(f"Not compared: {what}.")
    print_text(f"{output}: {size}, written in {exported.seconds:.0f} s")
