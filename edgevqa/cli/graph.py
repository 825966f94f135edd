"""`edgevqa graph`: run one graph of a bundle on given arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.app import add_command, make_app
from edgevqa.cli.output import print_json, print_table
from edgevqa.runtime.graph_run import check_output, read_arrays, run_graph, write_arrays
from edgevqa.runtime.pipelines.base import PipelineOptions


def run(
    bundle: shared.BundleArgument,
    graph: Annotated[str, typer.Argument(metavar="GRAPH", help="A graph's name, as `edgevqa inspect` lists them.")],
    inputs: Annotated[Path, typer.Option(metavar="FILE", help="An .npz file with an array for every input.")],
    outputs: Annotated[Path, typer.Option(metavar="FILE", help="The .npz file to write.")],
    precision: shared.PrecisionOption = None,
    backend: Annotated[str, typer.Option(metavar="B", help="What runs the graph.")] = "auto",
    threads: shared.ThreadsOption = 0,
    no_verify: shared.NoVerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outputs' shapes as JSON.")] = False,
) -> None:
    """Run one graph on given arrays, to compare machines and backends.

    Arrays are cast to the graph's dtypes; an array of one element takes the rank that the graph declares.

    Example:
      edgevqa graph run bundle vision_trunk --inputs in.npz --outputs out.npz
    """
    options = PipelineOptions(precision=precision, backend=backend, threads=threads, check=not no_verify)
    check_output(outputs, inputs=inputs)
    found = run_graph(bundle, graph, read_arrays(inputs), options)
    write_arrays(outputs, found)
    if as_json:
        rows = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in found.items()]
        print_json({"graph": graph, "file": str(outputs), "outputs": rows})
        return
    table = [(name, str(array.dtype), " x ".join(map(str, array.shape))) for name, array in found.items()]
    print_table(("output", "dtype", "shape"), table, title=str(outputs))


def graph() -> None:
    """Run one graph of a bundle on given arrays."""


app = make_app("Run one graph of a bundle on given arrays.")
app.callback()(graph)  # keeps `run` a word of its own while it is the only command
add_command(app, run)
