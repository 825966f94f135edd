"""Graphs for TensorRT 8.5 and 8.6 (JetPack 5 and 6.0): lowered from opset 18 to 17."""

from __future__ import annotations

import onnx_ir as ir

from edgevqa.export.trtexec import OPSET

TRACED_OPSET, IR_VERSION = 18, 8
# Opset 18 moved these operators' axes from an attribute to an input; ReduceSum had moved before.
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
)
_UNKNOWN_TO_17 = ("Col2Im", "BitwiseAnd", "GroupNormalization", "Mish", "OptionalGetElement", "CenterCropPad", "Gelu")


def lower(model: ir.Model) -> None:
    """Rewrite an opset-18 model to 17 in place.

    Raises `RuntimeError` naming the graph and the operator that cannot be lowered.
    """
    for node in list(model.graph):
        if node.op_type in _UNKNOWN_TO_17 or (node.op_type == "Pad" and len(node.inputs) > 3):
            raise RuntimeError(
                f"Graph '{model.graph.name}' has a {node.op_type}, which opset {OPSET} lacks. Upgrade the board to "
                "JetPack 6.1 and export for jetson-orin-jp6."
            )
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1:
            _axes_to_attribute(node, str(model.graph.name))
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)
    model.graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _axes_to_attribute(node: ir.Node, graph: str) -> None:
    axes = node.inputs[1]
    node.attributes.pop("noop_with_empty_axes", None)
    if axes is not None:
        constant = axes.const_value
        if constant is None:
            raise RuntimeError(
                f"Graph '{graph}': the axes of {node.name} are computed, which opset {OPSET} cannot have."
            )
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in constant.numpy().ravel()])
    node.resize_inputs(1)
