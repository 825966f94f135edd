"""The float graphs after SmoothQuant: what is divided and multiplied where, the same function by other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgevqa.calibration.linears import Linear, find_linears
from edgevqa.calibration.observation.statistics import TensorStatistics
from edgevqa.calibration.quantization.blocks import Block, FloatGraph, Layer, Tensor
from edgevqa.calibration.quantization.formats import Floats

HISTOGRAM_BINS = 4096


@dataclass(kw_only=True, eq=False)
class Smoothing:
    """Of one graph: divisors of vectors by name; by Linear name, factors of its inputs and divisors of its outputs."""

    vectors: dict[str, Floats] = field(default_factory=dict[str, Floats])
    inputs: dict[str, Floats] = field(default_factory=dict[str, Floats])
    outputs: dict[str, Floats] = field(default_factory=dict[str, Floats])
    tensors: dict[str, Floats] = field(default_factory=dict[str, Floats])

    def weight(self, linear: Linear) -> Floats:
        """The weight (in, out), float32."""
        weight = linear.matrix()
        if linear.name in self.inputs:
            weight *= self.inputs[linear.name][:, None]
        if linear.name in self.outputs:
            weight /= self.outputs[linear.name]
        return weight

    def apply(self, graph: ir.Graph) -> None:
        """Change the float graph in place. Weights are computed when they are asked for."""
        for name, divisor in self.vectors.items():
            _replace(graph.initializers[name], _vector(graph.initializers[name]) / divisor)
        for linear in find_linears(graph).values():
            if linear.name in self.outputs and linear.bias is not None:
                _replace(linear.bias, _vector(linear.bias) / self.outputs[linear.name])
            if linear.name in self.inputs or linear.name in self.outputs:
                _replace_weight(linear, self)


def gather(graphs: Mapping[str, FloatGraph], chosen: Mapping[Block, Floats]) -> dict[str, Smoothing]:
    """What every graph becomes when the blocks are smoothed by their vectors."""
    found = {name: Smoothing() for name in graphs}
    for block, divisor in chosen.items():
        for (graph, tensor), folds in (block.folds or {}).items():
            found[graph].tensors[tensor] = divisor
            for fold in folds:
                found[graph].vectors.update(dict.fromkeys(fold.vectors, divisor))
                if fold.linear is not None:
                    found[graph].outputs[fold.linear] = divisor
        for layer in block.layers:
            found[layer.graph].inputs[layer.linear.name] = divisor
    return found


def smoothed_statistics(statistics: TensorStatistics, divisor: Floats) -> TensorStatistics:
    """What would have been observed of x / s. The histogram is that of the captured rows; the largest |x| is exact."""
    absmax = statistics.channel_absmax / divisor
    rows = statistics.rows / divisor
    largest = float(absmax.max(initial=0.0))
    limit = float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0
    counts, _ = np.histogram(rows, bins=HISTOGRAM_BINS, range=(-limit, limit))
    return TensorStatistics(
        low=-largest if statistics.low < 0 else 0.0,
        high=largest if statistics.high > 0 else 0.0,
        limit=limit,
        counts=counts.astype(np.int64),
        channel_absmax=absmax,
        channel_mean=statistics.channel_mean / divisor,
        rows=rows,
        row_count=statistics.row_count,
    )


def smoothed_absmax(graph: FloatGraph, smoothing: Smoothing) -> dict[str, float]:
    """The largest |x| of every float tensor after smoothing: exact where a Linear reads it, else at most that."""
    found = dict(graph.statistics.absmax)
    for name, divisor in smoothing.outputs.items():
        for value in _downstream(graph.linears[name], set(smoothing.tensors)):
            if value in found:
                found[value] /= float(divisor.min())
    for name, divisor in smoothing.tensors.items():
        statistics = graph.statistics.inputs.get(name)
        if statistics is not None:
            found[name] = float((statistics.channel_absmax / divisor).max())
    return found


def key_of(layer: Layer, smoothing: Smoothing) -> bytes:
    """The same for layers whose weights are equal after smoothing."""
    factors = (smoothing.inputs.get(layer.linear.name), smoothing.outputs.get(layer.linear.name))
    return layer.key + b"".join(b"-" if factor is None else factor.tobytes() for factor in factors)


def divisor_of(tensor: Tensor, smoothings: Mapping[str, Smoothing]) -> Floats | None:
    """The s of a tensor, or None where it is left as it was."""
    return smoothings[tensor[0]].tensors.get(tensor[1])


def _downstream(linear: Linear, ends: set[str]) -> list[str]:
    """Names of the values from the Linear's outputs to the smoothed tensor."""
    found: list[str] = []
    waiting = [use.output for use in linear.uses]
    while waiting:
        value = waiting.pop()
        name = str(value.name)
        if name in found:
            continue
        found.append(name)
        if name not in ends:
            waiting += [output for use in value.uses() for output in use.node.outputs]
    return found


def _vector(value: ir.Value) -> Floats:
    if value.const_value is None:
        raise RuntimeError(f"{value.name} is no constant.")
    return np.array(value.const_value.numpy(), dtype=np.float32)


def _replace(value: ir.Value, array: Floats) -> None:
    value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)


def _replace_weight(linear: Linear, smoothing: Smoothing) -> None:
    """Put a tensor that is computed from the stored one when its bytes are asked for."""
    stored = linear.weight.const_value
    if stored is None:
        raise RuntimeError(f"The weight of {linear.name} is no constant.")
    source = Linear(
        name=linear.name,
        weight=ir.Value(name=linear.weight.name, const_value=stored),
        out_axis=linear.out_axis,
        bias=None,
        uses=(),
        head=linear.head,
    )

    def evaluate() -> ir.TensorProtocol:
        weight = smoothing.weight(source)
        return ir.Tensor(np.ascontiguousarray(weight if linear.out_axis == 1 else weight.T), name=stored.name)

    linear.weight.const_value = ir.LazyTensor(
        evaluate, dtype=stored.dtype, shape=ir.Shape(stored.shape.numpy()), name=stored.name or ""
    )
