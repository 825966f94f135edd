"""Reshapes with constant targets: sizes that the tracer computes while the model runs become 0 (as it is) and -1 (the rest)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

Size = int | str | None
"""A number, the name of an axis, or unknown."""


def settle_reshapes(model: ir.Model) -> None:
    """Let a Reshape of a Reshape read the first one's input, and give every Reshape a constant target where it can have one.

    What then computes sizes for nobody is removed. The model is changed in place.
    """
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _skip_reshape(node)
            _settle(model.graph, node)
    RemoveUnusedNodesPass()(model)


def _skip_reshape(node: ir.Node) -> None:
    data, sizes = node.inputs[0], _sizes(node.inputs[1])
    before = None if data is None else data.producer()
    if before is not None and before.op_type == "Reshape" and sizes is not None and 0 not in sizes:
        node.replace_input_with(0, before.inputs[0])


def _settle(graph: ir.Graph, node: ir.Node) -> None:
    data, target = node.inputs
    sizes = _sizes(target)
    if data is None or data.shape is None or target is None or target.const_value is not None or sizes is None:
        return
    found = [_element(size, place, data.shape) for place, size in enumerate(sizes)]
    if 0 in sizes or found.count(-1) > 1:
        return
    constant = ir.Tensor(np.array(found, dtype=np.int64), name=f"{node.outputs[0].name}.target")
    value = ir.Value(
        name=constant.name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([len(found)]),
        const_value=constant,
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes.pop("allowzero", None)  # with it a 0 would be an axis without elements


def _element(size: Size, place: int, data: ir.Shape) -> int:
    if isinstance(size, int):
        return size
    kept = size is not None and place < len(data) and str(data[place]) == size
    return 0 if kept else -1


def _sizes(target: ir.Value | None) -> list[Size] | None:
    """The elements of a vector of sizes, or None where their number is not known."""
    if target is None:
        return None
    if target.const_value is not None:
        return [int(size) for size in target.const_value.numpy().reshape(-1)]
    node = target.producer()
    if node is not None and node.op_type == "Concat":
        parts = [_sizes(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [size for part in parts for size in part or ()]
    if node is not None and node.op_type == "Shape":
        return _axes(node)
    one = target.shape is not None and target.shape.is_static() and target.shape.numpy() == (1,)
    return [None] if one else None


def _axes(node: ir.Node) -> list[Size] | None:
    """What a Shape node gives: numbers and names of axes."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return [size if isinstance(size, int) else size.value for size in shape[start:end]]
