"""Run an FP16 or BF16 graph with its true rounding on a CPU, whose backends compute such graphs in FP32 throughout."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import onnx_ir as ir

from edgevqa.calibration.casting.cast import converted
from edgevqa.calibration.casting.ranges import LAYOUT
from edgevqa.calibration.reading import load_graph
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.sessions.base import Session, SessionOptions
from edgevqa.runtime.sessions.ort import OrtSession

_LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulate_rounding(model: ir.Model) -> None:
    """Turn a low-precision graph, in place, into one of float32 that rounds (and overflows) as low precision does.

    ONNX Runtime computes FP16 nodes in FP32 on a CPU and drops the casts between them (1.31), and so does OpenVINO:
    what they answer has rounded weights, inputs and outputs, but never overflows inside. Here every product, sum and
    activation is computed in FP32, as accelerators do, and its result rounded by a pair of casts that stays. Inputs and
    outputs keep their types. BF16 graphs, which ONNX Runtime has no kernels for, run so as well.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None and value.dtype in _LOW:
            value.const_value = converted(value.const_value, ir.DataType.FLOAT)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for output in node.outputs:
            if output.dtype in _LOW:
                _round(graph, node, output)
    for value in graph.inputs:
        if value.dtype in _LOW:
            uses = [use for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(graph[0], cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])


def emulated_graphs(bundle: Bundle, variant: str, folder: Path, options: SessionOptions | None = None) -> Graphs:
    """Sessions of ONNX Runtime that emulate a variant, for `Pipeline(bundle, graphs, ...)`; the caller closes them.

    The emulated graphs are written into `folder` and may be deleted once this returns.
    """
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        for name, spec in bundle.variant(variant).graphs.items():
            model = load_graph(bundle.graph_path(variant, name))
            emulate_rounding(model)
            path = folder / f"{name}.onnx"
            ir.save(model, path, external_data=f"{name}.data")
            sessions[name] = stack.enter_context(OrtSession(path, name, spec, options or SessionOptions()))
        stack.pop_all()
    return Graphs(sessions, Statistics())


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Let `node` give float32, and what read its low output read the rounded value."""
    low, boundary = output.dtype or ir.DataType.FLOAT16, output.is_graph_output()
    uses = list(output.uses())
    if node.op_type == "Cast":
        rounded: ir.Value = output  # it rounds already
        last = node
    elif node.op_type in LAYOUT and not boundary:
        output.dtype = ir.DataType.FLOAT
        return
    else:
        name = output.name
        output.dtype, output.name = ir.DataType.FLOAT, f"{output.name}.exact"
        last = _cast(output, low)
        rounded = last.outputs[0]
        rounded.name = name
        graph.insert_after(node, last)
    widened = _cast(rounded, ir.DataType.FLOAT)
    graph.insert_after(last, widened)
    for use in uses:
        use.node.replace_input_with(use.idx, widened.outputs[0])
    for number, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[number] = rounded


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    name = f"{value.name}.as_{dtype.name.lower()}"
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    output = node.outputs[0]
    output.name, output.dtype, output.shape = name, dtype, value.shape
    return node
