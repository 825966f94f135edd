"""Put explicit quantising and dequantising nodes into a float32 graph: at the inputs of Linear layers, nowhere else.

Backends fuse `QuantizeLinear, DequantizeLinear, MatMul` into integer products. Sources of the placement: TensorRT's
documentation of explicit quantisation (inputs of matrix products, not their outputs; one scale a tensor for
activations, one an output channel for weights; zero points of 0, written out), and ONNX Runtime's and OpenVINO's fusions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevqa.calibration.linears import Linear
from edgevqa.calibration.quantization.formats import Floats, Scale, store_weight
from edgevqa.calibration.quantization.recipe import BLOCKS_OPSET, WeightBits
from edgevqa.calibration.quantization.weight_only import BlockTensors
from edgevqa.runtime.errors import InputError

LEAST_OPSET = {"fp32": 13, "fp16": 19}  # 13: one scale a channel; 19: scales in FP16
FP8_OPSET = 21  # 19 has FP8, but ONNX Runtime moves quantising in front of Transpose, which takes FP8 only from 21


class Placer:
    """Changes one graph in place. A tensor that several layers read is quantised once.

    FP8 graphs get opset 21 where `max_opset` allows it; below that ONNX Runtime does not run them, TensorRT does.
    """

    def __init__(self, model: ir.Model, *, max_opset: int = FP8_OPSET) -> None:
        self.model = model
        self._max_opset = max_opset
        self.graph = model.graph
        self._dequantised: dict[tuple[ir.Value, float, int], ir.Value] = {}

    def quantise_linear(
        self, linear: Linear, weight: Floats, scales: Floats, inputs: Sequence[tuple[str, Scale]]
    ) -> None:
        """Quantise a layer: its `weight` (in, out) by `scales` (out,), each use's input by one of `inputs`.

        Those name the input as it was before any pass changed the graph.
        """
        kind = inputs[0][1].format
        self._check_opset(LEAST_OPSET[kind.around])
        if kind.kind == "fp8" and self._max_opset >= FP8_OPSET:
            raise_opset(self.model, FP8_OPSET)
        stored = store_weight(weight, scales, kind)
        name = str(linear.weight.name)
        constants: list[ir.TensorProtocol] = [
            ir.Tensor(_as_stored(stored, linear), dtype=kind.weight_type, name=f"{name}.quantized"),
            ir.Tensor(scales, name=f"{name}.scale"),
            ir.Tensor(np.zeros(scales.shape, stored.dtype), dtype=kind.weight_type, name=f"{name}.zero_point"),
        ]
        ready = self._dequantise_weight(linear, constants, {"axis": linear.out_axis})
        for use, (tensor, scale) in zip(linear.uses, inputs, strict=True):
            use.node.replace_input_with(0, self.round_trip(use.node, 0, scale, tensor))
            use.node.replace_input_with(1, ready)

    def quantise_weight(self, linear: Linear, read: Callable[[], Floats], size: int, bits: WeightBits) -> None:
        """Quantise a layer's weight alone, in blocks of `size` inputs; INT8 with one block has one scale an output channel.

        `read` gives the weight (in, out); it is called when the graph is written, so that one weight is in memory at a time.
        """
        whole = bits == "int8" and size == linear.in_features
        attributes = {"axis": linear.out_axis} if whole else {"axis": 1 - linear.out_axis, "block_size": size}
        if whole:
            self._check_opset(LEAST_OPSET["fp16"])
        else:
            raise_opset(self.model, BLOCKS_OPSET)
        shape = (linear.in_features, linear.out_features)
        blocks = BlockTensors(read, shape, size, bits, transposed=linear.out_axis == 0)
        name = str(linear.weight.name)
        constants = [blocks.integers(f"{name}.quantized"), blocks.scales(f"{name}.scale", flat=whole)]
        ready = self._dequantise_weight(linear, constants, attributes)
        for use in linear.uses:
            use.node.replace_input_with(1, ready)

    def round_trip(self, node: ir.Node, place: int, scale: Scale, name: str) -> ir.Value:
        """What `node` reads at `place`, quantised and back; once a tensor and scale."""
        value = node.inputs[place]
        if value is None:
            raise RuntimeError(f"{node.name} has no input {place}.")
        key = (value, scale.scale, scale.zero_point)
        if key not in self._dequantised:
            self._dequantised[key] = self._insert(value, scale, node, name)
        return self._dequantised[key]

    def add_bias(self, linear: Linear, corrections: Sequence[Floats]) -> None:
        """Add a vector (out,) to the output of each use: into the bias that is there, or by an Add of its own."""
        for number, (use, vector) in enumerate(zip(linear.uses, corrections, strict=True)):
            name = f"{use.node.name}.corrected_bias"
            if linear.bias is None:
                _add_after(self.graph, use.node, self._constant(ir.Tensor(vector, name=name)), name)
                continue
            if linear.bias.const_value is None:
                raise RuntimeError(f"The bias of {linear.name} is no constant.")
            bias = self._constant(ir.Tensor(linear.bias.const_value.numpy() + vector, name=name))
            reader = use.bias_add or use.node
            place = list(reader.inputs).index(linear.bias)
            reader.replace_input_with(place, bias)
            if number == 0 and use.node.op_type == "Gemm" and use.node.attributes.get_float("beta", 1.0) != 1.0:
                raise RuntimeError(f"{use.node.name} scales its bias.")

    def finish(self) -> None:
        """Drop the constants that nothing reads any more."""
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _insert(self, value: ir.Value, scale: Scale, before: ir.Node, name: str) -> ir.Value:
        kind = scale.format.activation_type
        size = self._constant(ir.Tensor(np.array(scale.scale, np.float32), name=f"{name}.scale"))
        zero = np.array(scale.zero_point, kind.numpy())
        point = self._constant(ir.Tensor(zero, dtype=kind, name=f"{name}.zero_point"))
        quantise = ir.node("QuantizeLinear", [value, size, point], name=f"{name}.quantize")
        dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], size, point], name=f"{name}.dequantize")
        _describe(quantise.outputs[0], f"{name}.quantized", kind, value.shape)
        _describe(dequantise.outputs[0], f"{name}.dequantized", ir.DataType.FLOAT, value.shape)
        self.graph.insert_before(before, [quantise, dequantise])
        return dequantise.outputs[0]

    def _dequantise_weight(
        self, linear: Linear, constants: Sequence[ir.TensorProtocol], attributes: dict[str, int]
    ) -> ir.Value:
        """A DequantizeLinear of integers, scales and perhaps zero points, in front of the layer's first use."""
        name = f"{linear.weight.name}.dequantize"
        node = ir.node("DequantizeLinear", [self._constant(tensor) for tensor in constants], attributes, name=name)
        shape = ir.Shape(constants[0].shape.numpy())
        _describe(node.outputs[0], f"{linear.weight.name}.dequantized", ir.DataType.FLOAT, shape)
        self.graph.insert_before(linear.uses[0].node, node)
        return node.outputs[0]

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer; its name is made different where there is one of that name."""
        name = tensor.name or ""
        while name in self.graph.initializers:
            name += "_"
        tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _check_opset(self, least: int) -> None:
        opset = self.model.opset_imports[""]
        if opset < least:
            raise InputError(
                f"Graph {self.graph.name} has opset {opset}; these numerics need {least}. Export the bundle again with "
                f"--opset {max(least, 20)}."
            )


_Kind = TypeVar("_Kind", bound=np.number[Any])


def _as_stored(array: NDArray[_Kind], linear: Linear) -> NDArray[_Kind]:
    """An array (in, out) in the layout of the layer's weight."""
    return np.ascontiguousarray(array if linear.out_axis == 1 else array.T)


def raise_opset(model: ir.Model, least: int) -> None:
    """Declare a higher opset: from 18 to 21 no operator of our graphs changes but in the types that it takes."""
    changed = {"DFT", "GroupNormalization", "Pad", "Resize"} & {node.op_type for node in model.graph}
    if model.opset_imports[""] < least and changed:
        raise InputError(
            f"{', '.join(sorted(changed))} differ in opset {least}. Export the bundle with --opset {least}."
        )
    model.opset_imports[""] = max(model.opset_imports[""], least)


def _add_after(graph: ir.Graph, node: ir.Node, bias: ir.Value, name: str) -> None:
    """Let all that reads the node's output read it with `bias` added, under the name that it had."""
    output = node.outputs[0]
    uses = list(output.uses())
    add = ir.node("Add", [output, bias], name=name)
    _describe(add.outputs[0], str(output.name), ir.DataType.FLOAT, output.shape)
    output.name = f"{output.name}.uncorrected"
    graph.insert_after(node, add)
    for use in uses:
        use.node.replace_input_with(use.idx, add.outputs[0])
    for number, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[number] = add.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape
