"""Graphs for TensorRT 8.5 and 8.6 (JetPack 5 and 6.0): lowered from opset 18 to 17, with the trtexec lines that build them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles, widest
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.manifest import Manifest

OPSET, TRACED_OPSET, IR_VERSION = 17, 18, 8
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


def trtexec_lines(manifest: Manifest, variant: str = "fp32") -> Iterator[str]:
    """One command a graph, to be run in the bundle's folder; shapes as `edgevqa build` would choose them."""
    graphs = manifest.variants[variant].graphs
    ranges = axis_ranges(manifest, graphs, BuildOptions(target="jetson-orin-jp6"))  # shapes do not depend on the target
    for name, graph in graphs.items():
        profile = widest(graph_profiles(name, graph, ranges))
        shapes = " ".join(
            f"--{side}Shapes={_shapes(profile, side)}" for side in ("min", "opt", "max") if _moves(profile)
        )
        yield f"trtexec --onnx={graph.file.path} --saveEngine={name}.engine --fp16 {shapes}".rstrip()


def _moves(profile: Profile) -> bool:
    return any(each.min != each.max for each in profile.values())


def _shapes(profile: Profile, side: str) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, getattr(each, side)))}" for name, each in profile.items())
