"""The Linear layers of a graph: every MatMul or Gemm with a constant two-dimensional weight, found by structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

HEAD_OUTPUT = "logits"


@dataclass(frozen=True, kw_only=True)
class LinearUse:
    """One multiplication by a Linear's weight. `bias_add` is the Add of the bias that follows it, if any."""

    node: ir.Node
    input: ir.Value
    output: ir.Value
    bias_add: ir.Node | None


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A Linear layer: one weight and its uses (two in a fused layer: the image's tokens and the question's).

    `name` is the weight's without `.weight`. The weight is stored (in, out), or (out, in) where a Gemm transposes it:
    `out_axis` is the axis of the output channels. `head` tells that the outputs are the vocabulary's logits.
    """

    name: str
    weight: ir.Value
    out_axis: int
    bias: ir.Value | None
    uses: tuple[LinearUse, ...]
    head: bool

    @property
    def in_features(self) -> int:
        return self._shape[1 - self.out_axis]

    @property
    def out_features(self) -> int:
        return self._shape[self.out_axis]

    def matrix(self) -> NDArray[np.float32]:
        """The weight as float32 (in, out); a copy."""
        tensor = self.weight.const_value
        if tensor is None:
            raise RuntimeError(f"The weight of {self.name} is no constant.")
        array = np.array(tensor.numpy(), dtype=np.float32)
        return array if self.out_axis == 1 else np.ascontiguousarray(array.T)

    @property
    def _shape(self) -> tuple[int, int]:
        tensor = self.weight.const_value
        if tensor is None:
            raise RuntimeError(f"The weight of {self.name} is no constant.")
        rows, columns = tensor.shape.numpy()
        return rows, columns


def find_linears(graph: ir.Graph) -> dict[str, Linear]:
    """All Linear layers by name, in the order in which they run."""
    grouped: dict[str, list[ir.Node]] = {}
    for node in graph:
        weight = linear_weight(node)
        if weight is not None:
            grouped.setdefault(str(weight.name), []).append(node)
    found = [_linear(graph, nodes) for nodes in grouped.values()]
    return {linear.name: linear for linear in found}


def linear_weight(node: ir.Node) -> ir.Value | None:
    """The constant two-dimensional float weight that `node` multiplies by, or None."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return weight if weight.const_value.dtype == ir.DataType.FLOAT else None


def _linear(graph: ir.Graph, nodes: list[ir.Node]) -> Linear:
    weight = nodes[0].inputs[1]
    if weight is None:
        raise RuntimeError(f"{nodes[0].name} has no weight.")
    uses = tuple(_use(node) for node in nodes)
    transposed = nodes[0].op_type == "Gemm" and nodes[0].attributes.get_int("transB", 0) == 1
    return Linear(
        name=str(weight.name).removesuffix(".weight"),
        weight=weight,
        out_axis=0 if transposed else 1,
        bias=_bias(uses[0]),
        uses=uses,
        head=any(_reaches_head(use.output) for use in uses),
    )


def _use(node: ir.Node) -> LinearUse:
    value, output = node.inputs[0], node.outputs[0]
    if value is None:
        raise RuntimeError(f"{node.name} has no input.")
    adds = [use.node for use in output.uses() if use.node.op_type == "Add" and _constant_vector(use.node, output)]
    return LinearUse(node=node, input=value, output=output, bias_add=adds[0] if len(adds) == 1 else None)


def _bias(use: LinearUse) -> ir.Value | None:
    if use.node.op_type == "Gemm":
        return use.node.inputs[2] if len(use.node.inputs) > 2 else None
    return None if use.bias_add is None else _constant_vector(use.bias_add, use.output)


def _constant_vector(add: ir.Node, other: ir.Value) -> ir.Value | None:
    """The one-dimensional constant that `add` adds to `other`."""
    for value in add.inputs:
        if value is not None and value is not other and value.const_value is not None:
            return value if len(value.const_value.shape) == 1 else None
    return None


def _reaches_head(value: ir.Value) -> bool:
    """Whether the logits follow from `value` by nothing but casts, scalings and reshapes."""
    seen: list[ir.Value] = [value]
    while seen:
        current = seen.pop()
        if current.name == HEAD_OUTPUT:
            return True
        passing = ("Cast", "Reshape", "Squeeze", "Mul", "Gather", "Slice", "Identity")
        seen += [out for use in current.uses() if use.node.op_type in passing for out in use.node.outputs]
    return False
