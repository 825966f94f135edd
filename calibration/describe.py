"""The manifest's entry of a written graph."""

from __future__ import annotations

from collections import Counter
from math import prod

import onnx_ir as ir

from edgevqa.runtime.manifest import Axis, FileSpec, GraphSpec, TensorSpec


def graph_spec(model: ir.Model, file: FileSpec) -> GraphSpec:
    """Inputs, outputs, operators and the opset that the graph really has."""
    initializers = model.graph.initializers.values()
    return GraphSpec(
        file=file,
        opset=model.opset_imports[""],
        ir_version=model.ir_version,
        inputs=[tensor_spec(value) for value in model.graph.inputs],
        outputs=[tensor_spec(value) for value in model.graph.outputs],
        parameters=sum(prod(v.const_value.shape.numpy()) for v in initializers if v.const_value is not None),
        nodes=dict(sorted(Counter(node.op_type for node in model.graph).items())),
    )


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Name, numpy dtype and axes of a graph input or output."""
    if value.name is None or value.shape is None or value.dtype is None:
        raise RuntimeError(f"Graph value {value.name} has no shape or type.")
    axes: list[Axis] = [size if isinstance(size, int) else str(size) for size in value.shape]
    return TensorSpec(name=value.name, dtype=value.dtype.numpy().name, shape=axes)
