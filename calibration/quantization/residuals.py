"""The residual adds of a graph, and how much quantising one would drown: where INT8 destroys vision transformers.

A few channels of a residual stream are a hundred or a thousand times as large as the others. One scale for the whole
tensor then rounds the others to nothing, which the tensor's overall error hides: it is judged channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.ranges import activation_range
from edgevqa.calibration.observation.statistics import GraphStatistics
from edgevqa.calibration.quantization.formats import Floats, Format, Scale
from edgevqa.calibration.quantization.qdq import Placer


@dataclass(frozen=True, kw_only=True)
class ResidualAdd:
    """An Add of the residual stream, `node`'s input number `place` of name `tensor`, and a Linear's output."""

    node: ir.Node
    place: int
    tensor: str


def find_residuals(graph: ir.Graph) -> list[ResidualAdd]:
    """Adds of a Linear's output (with its bias) and another tensor of that width, in the order in which they run."""
    outputs: set[int] = set()
    for linear in find_linears(graph).values():
        for use in linear.uses:
            outputs.add(id(use.output if use.bias_add is None else use.bias_add.outputs[0]))
    return [found for node in graph if node.op_type == "Add" and (found := _residual(node, outputs)) is not None]


def _residual(node: ir.Node, outputs: set[int]) -> ResidualAdd | None:
    first, second = node.inputs
    if first is None or second is None or first.const_value is not None or second.const_value is not None:
        return None
    if id(first) not in outputs and id(second) not in outputs:
        return None
    place = int(id(first) in outputs and id(second) not in outputs)
    return ResidualAdd(node=node, place=place, tensor=str((first, second)[place].name))


def drowned(rows: Floats, scale: Scale) -> float:
    """Rounding noise of a typical channel relative to how much that channel varies over `rows` (rows, channels).

    The median over the channels; 1 says that a typical channel carries nothing but noise.
    """
    variation = rows.std(axis=0, dtype=np.float64)
    noise = np.sqrt(np.square(scale.round(rows) - rows, dtype=np.float64).mean(axis=0))
    alive = variation > 0
    if not alive.any():
        return 0.0
    return float(np.median(noise[alive] / variation[alive]))


@dataclass(frozen=True, kw_only=True)
class ResidualPoint:
    """The stream at one residual add that was to be quantised, and how much of it would drown (`error`).

    `reason` tells why it stays high; None: it is quantised.
    """

    add: str
    tensor: str
    error: float | None
    scale: Scale | None
    reason: str | None


def judge_residuals(
    residuals: Sequence[ResidualAdd], statistics: GraphStatistics, kind: Format, max_error: float
) -> list[ResidualPoint]:
    """The stream at every residual add, quantised at the range of all that was seen of it, as TensorRT's tools do."""
    return [_judge(residual, statistics, kind, max_error) for residual in residuals]


def _judge(residual: ResidualAdd, statistics: GraphStatistics, kind: Format, max_error: float) -> ResidualPoint:
    add, name = str(residual.node.name), residual.tensor
    seen = statistics.inputs.get(name)
    if seen is None:
        return ResidualPoint(add=add, tensor=name, error=None, scale=None, reason="calibration did not observe it")
    scale = kind.activation(*activation_range(seen, "max", symmetric=kind.symmetric))
    error = drowned(seen.rows, scale)
    reason = None
    if error > max_error:
        reason = f"rounding takes {error:.0%} of a typical channel's variation (at most {max_error:.0%})"
    return ResidualPoint(add=add, tensor=name, error=error, scale=scale, reason=reason)


def place_residuals(placer: Placer, residuals: Sequence[ResidualAdd], points: Sequence[ResidualPoint]) -> None:
    """Quantise the stream where nothing speaks against it. `residuals` were found before any layer was quantised."""
    for residual, point in zip(residuals, points, strict=True):
        if point.reason is None and point.scale is not None:
            value = placer.round_trip(residual.node, residual.place, point.scale, residual.tensor)
            residual.node.replace_input_with(residual.place, value)
