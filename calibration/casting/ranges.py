"""How large every float tensor of a graph can get, from constants and from what calibration observed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

_CHOOSING = frozenset(["Concat", "Expand", "Gather", "Identity", "Slice", "Split", "Tile", "Where"])
_RESHAPING = frozenset(["Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
LAYOUT = _CHOOSING | _RESHAPING
"""Operators that move values and change none: the type of their output may be that of their input."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_UNIT = ("Sigmoid", "Softmax")  # outputs between 0 and 1, whatever comes in
_SHRINKING = ("Gelu", "Relu", "Tanh")  # |output| <= |input|


@dataclass(frozen=True)
class Range:
    """Values lie in [low, high].

    `proven` ranges follow from constants and hold for every input of the graph; others are what was observed, times a
    margin. `masked` ranges hold what calibration need not have met, such as a mask where nothing was padded. `observed`
    is the largest |x| seen, without the margin.
    """

    low: float
    high: float
    proven: bool = False
    masked: bool = False
    observed: float | None = None

    @property
    def magnitude(self) -> float:
        """The largest |x|; infinite where it is not known to be finite."""
        largest = max(abs(self.low), abs(self.high))
        return math.inf if math.isnan(largest) else largest

    @property
    def shown(self) -> float:
        """What a report shows: the largest |x| observed, or the proven one."""
        return self.magnitude if self.observed is None else self.observed


Ranges = dict[ir.Value, "Range | None"]


def tensor_ranges(graph: ir.Graph, absmax: Mapping[str, float], margin: float) -> Ranges:
    """The range of every float tensor; None where nothing is known. `absmax` is the largest |x| observed, by name.

    Masks need the proven part: calibrating one question at a time pads nothing, so that a mask's -30000 is never seen.
    """
    ranges: Ranges = {value: constant_range(value) for value in graph.initializers.values() if value.dtype in FLOATS}
    for value in graph.inputs:
        if value.dtype in FLOATS:
            ranges[value] = _observed(value, absmax, margin)
    for node in graph:
        for output in node.outputs:
            if output.dtype in FLOATS:
                seen = _observed(output, absmax, margin) or _before_bias(output, absmax, margin)
                found = _derived(node, ranges, seen)
                if found is not None and seen is not None:
                    found = replace(found, observed=seen.observed)
                ranges[output] = seen if found is None else found
    return ranges


def constant_range(value: ir.Value) -> Range | None:
    """The range of a constant, or None where `value` is none."""
    if value.const_value is None or value.const_value.size == 0:
        return None
    array = value.const_value.numpy()
    return Range(float(array.min()), float(array.max()), proven=True)


def _observed(value: ir.Value, absmax: Mapping[str, float], margin: float) -> Range | None:
    seen = absmax.get(value.name or "")
    return None if seen is None else Range(-margin * seen, margin * seen, observed=seen)


def _before_bias(value: ir.Value, absmax: Mapping[str, float], margin: float) -> Range | None:
    """What is not observed itself, but read by one Add of a constant whose sum is: a bias that was put in later."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    total = _observed(uses[0].node.outputs[0], absmax, margin)
    other = uses[0].node.inputs[1 - uses[0].idx]
    bias = None if other is None else constant_range(other)
    if total is None or bias is None:
        return None
    return Range(total.low - bias.high, total.high - bias.low)


def _derived(node: ir.Node, ranges: Ranges, seen: Range | None) -> Range | None:
    """What follows from the node's inputs, where that says more than what was observed of its output."""
    if node.domain:
        return None
    if node.op_type in _UNIT:
        return Range(0.0, 1.0, proven=True)
    if node.op_type == "Cast":
        return _cast(node, ranges, seen)
    if node.op_type == "DequantizeLinear":
        return _dequantized(node)
    inputs = [value for value in node.inputs if value is not None and value.dtype in FLOATS]
    known = [found for value in inputs if (found := ranges.get(value)) is not None]
    if not known or len(known) != len(inputs):
        return None
    proven, masked = all(found.proven for found in known), any(found.masked for found in known)
    if seen is not None and not proven and not masked:
        return None  # what was observed says more
    if node.op_type in LAYOUT:
        return Range(min(found.low for found in known), max(found.high for found in known), proven, masked)
    if node.op_type in _SHRINKING:
        return Range(-known[0].magnitude, known[0].magnitude, proven, masked)
    bounds = _arithmetic(node.op_type, known) if len(known) == 2 else None
    return None if bounds is None else Range(*bounds, proven, masked)


def _arithmetic(operator: str, known: list[Range]) -> tuple[float, float] | None:
    """The least and the largest sum, difference or product."""
    left, right = known
    if operator == "Add":
        return left.low + right.low, left.high + right.high
    if operator == "Sub":
        return left.low - right.high, left.high - right.low
    if operator == "Mul":
        corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
        return min(corners), max(corners)
    return None


def _cast(node: ir.Node, ranges: Ranges, seen: Range | None) -> Range | None:
    """Integers that become floats are masks and counts: not negative, at least 1, and as large as they were seen."""
    source = node.inputs[0]
    if source is None or source.dtype in FLOATS:
        return None if source is None else ranges.get(source)
    if source.dtype == ir.DataType.BOOL:
        return Range(0.0, 1.0, proven=True, masked=True)
    if seen is None or seen.observed is None:
        return None
    return Range(0.0, max(1.0, seen.observed), proven=True, masked=True)


def _dequantized(node: ir.Node) -> Range | None:
    """(x - zero point) * scale, with x anything that its type can hold: quantised values saturate."""
    quantised, scale = node.inputs[0], node.inputs[1]
    if quantised is None or scale is None or scale.const_value is None or quantised.dtype is None:
        return None
    largest = float(np.abs(scale.const_value.numpy()).max())
    steps = _largest_of(quantised) + (_largest_of(node.inputs[2]) if len(node.inputs) > 2 else 0.0)
    return Range(-largest * steps, largest * steps, proven=True)


def _largest_of(value: ir.Value | None) -> float:
    """The largest |x| of a quantised constant, or that its type can hold."""
    if value is None or value.dtype is None:
        return 0.0
    if value.const_value is not None:
        return float(np.abs(value.const_value.numpy().astype(np.float64)).max(initial=0.0))
    if value.dtype.is_floating_point():
        return float(value.dtype.max)
    return 2.0 ** (value.dtype.bitwidth - (1 if value.dtype.is_signed() else 0))
