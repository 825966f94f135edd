"""Graphs that tell what flows through them: inputs of Linears and the residual stream whole, of all else the largest |x|."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.quantization.residuals import find_residuals
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import GraphSpec, TensorSpec

HIGHEST, TOTAL = "edgevqa_tap_max", "edgevqa_tap_sum"  # the names of the added outputs
MOVES = ("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # their output's |x| is known
BOUNDED = ("Sigmoid", "Softmax")  # none of their outputs is above 1


@dataclass(frozen=True, kw_only=True)
class TappedGraph:
    """A graph on disk with more outputs; `spec` lists them all.

    `whole` names the values, among the graph's inputs and outputs, that feed Linear layers or are the stream of a
    residual add. The outputs `HIGHEST` and `TOTAL` hold the largest and the sum of |x| of each of the `measured`
    tensors, in the order in which they are made. `same` names tensors that hold what another one does, and `bounded`
    those that are never above 1.
    """

    path: Path
    spec: GraphSpec
    whole: tuple[str, ...]
    measured: tuple[str, ...]
    same: dict[str, str]
    bounded: tuple[str, ...]


def tap_graph(bundle: Bundle, variant: str, graph: str, folder: Path) -> TappedGraph:
    """Write a graph with its taps to `folder`, whose weights lie there once for all graphs: see `link_weights`.

    The maximum of numbers that are NaN in part is arbitrary in ONNX Runtime (1.31 skips them); the sum of |x| is NaN
    exactly then, for it cannot be that infinities of both signs meet.
    """
    model = ir.load(bundle.graph_path(variant, graph))
    declared = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    uses = [use for linear in find_linears(model.graph).values() for use in linear.uses]
    whole = {str(use.input.name): use.input for use in uses}
    values = {str(value.name): value for value in _float_values(model.graph)}
    whole |= {found.tensor: values[found.tensor] for found in find_residuals(model.graph)}
    same = {name: source for name, value in values.items() if (source := _source(value)) in values}
    bounded = [name for name, value in values.items() if _made_by(value) in BOUNDED]
    measured = [name for name in values if name not in {*whole, *same, *bounded}]
    outputs = [value for name, value in whole.items() if name not in declared]
    if measured:
        outputs += _measure(model.graph, [values[name] for name in measured])
    model.graph.outputs.extend(outputs)
    path = folder / f"{graph}.onnx"
    ir.save(model, path)
    spec = bundle.graph(variant, graph)
    return TappedGraph(
        path=path,
        spec=msgspec.structs.replace(spec, outputs=[*spec.outputs, *(_spec_of(value) for value in outputs)]),
        whole=tuple(whole),
        measured=tuple(measured),
        same=same,
        bounded=tuple(bounded),
    )


def link_weights(bundle: Bundle, variant: str, folder: Path) -> None:
    """Put the variant's weights into `folder`: a hard link where the file system allows, else a copy.

    A symbolic link will not do: ONNX Runtime refuses weights outside the folder of the graph.
    """
    weights = bundle.weights_path(variant)
    if weights is None:
        return
    try:
        os.link(os.path.realpath(weights), folder / weights.name)
    except OSError:
        shutil.copyfile(weights, folder / weights.name)


def _float_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every float32 value that is not constant, in the order in which they are made."""
    constants = {value.name for value in graph.initializers.values()}
    made = [value for node in graph for value in node.outputs if node.op_type != "Constant"]
    for value in (*graph.inputs, *made):
        if value.name and value.dtype == ir.DataType.FLOAT and value.name not in constants:
            yield value


def _made_by(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None or node.domain else node.op_type


def _source(value: ir.Value) -> str:
    """The name of the value whose numbers `value` holds in another form; empty where it holds its own."""
    node = value.producer()
    if node is None or _made_by(value) not in MOVES or node.inputs[0] is None:
        return ""
    return str(node.inputs[0].name)


def _measure(graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
    """Add nodes for the largest |x| and for the sum of |x|, float32 (values,) each."""
    highest, totals = [], []
    for value in values:
        magnitude = ir.node("Abs", [value])
        highest.append(ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0}))
        totals.append(ir.node("ReduceL1", [value], attributes={"keepdims": 0}))
        graph.extend([magnitude, highest[-1], totals[-1]])
    return [_stacked(graph, highest, HIGHEST), _stacked(graph, totals, TOTAL)]


def _stacked(graph: ir.Graph, scalars: list[ir.Node], name: str) -> ir.Value:
    """One output for many scalars: binding hundreds of outputs takes longer than a small graph."""
    sequence = ir.node("SequenceConstruct", [node.outputs[0] for node in scalars])
    stacked = ir.node("ConcatFromSequence", sequence.outputs, attributes={"axis": 0, "new_axis": 1})
    graph.extend([sequence, stacked])
    value = stacked.outputs[0]
    value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape([len(scalars)])
    return value


def _spec_of(value: ir.Value) -> TensorSpec:
    axes = [] if value.shape is None else list(value.shape)
    shape = [axis if isinstance(axis, int) else str(axis) for axis in axes]
    return TensorSpec(name=str(value.name), dtype="float32", shape=shape)
