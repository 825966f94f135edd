"""Which nodes of a graph stay in FP32 when the rest is cast to FP16 or BF16, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgevqa.calibration.casting.ranges import FLOATS, LAYOUT, Ranges, tensor_ranges
from edgevqa.runtime.errors import ConfigError

Reason = Literal["overflow", "unobserved", "rms_norm", "constant", "operator", "index"]
CastPrecision = Literal["fp16", "bf16"]

DTYPES: dict[CastPrecision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST = 65504.0  # of FP16; BF16 reaches as far as FP32
MARGIN = 8.0
"""How much larger than everything seen in calibration a value may get, before it overflows in FP16.

Outliers of transformers sit in a few channels and vary little between inputs, so that a few hundred samples show them
to well within a factor of two; 8 leaves room for pictures unlike the calibration's, for padding, and for the partial
sums of a matrix product that is summed in FP16. It costs nothing where it does not matter: FP16 is as accurate at 8 as
at 8,000. The outliers of real ViTs (|x| about 1,400) pass, and T5's `wo` (66,000) does not.
"""

_PRODUCTS = frozenset(["Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"])
_SIMPLE = frozenset(["Abs", "Add", "Div", "LayerNormalization", "Max", "Min", "Mul", "Neg", "Softmax", "Sub"])
_ACTIVATIONS = frozenset(["Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"])
_COMPUTE = _PRODUCTS | _SIMPLE | _ACTIVATIONS
"""What is computed in low precision. All else that touches floats (sums over an axis, powers, roots, comparisons) stays
in FP32: it is cheap, and its intermediate values are what overflows, underflows or loses the answer."""

_QUANTISING = ("DequantizeLinear", "QuantizeLinear")
_TYPE_FREE = ("Shape", "Size")  # read a float tensor of any type and give integers
_LINEAR = ("Conv", "Gemm", "MatMul")
_TOLERANCE = {"fp16": 2.0**-10, "bf16": 2.0**-7}  # relative; twice what rounding of a normal number costs


class KeptNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node that stays in FP32: `tensor` is the value or constant to blame, `absmax` the largest |x| seen of it."""

    node: str
    operator: str
    reason: Reason
    tensor: str
    absmax: float | None


@dataclass(frozen=True, kw_only=True)
class CastOptions:
    """How a graph is cast. `margin` None turns the check of ranges off: what overflows then overflows.

    `boundaries` gives the numpy dtype of graph inputs and outputs by name; those not named stay float32.
    """

    precision: CastPrecision = "fp16"
    margin: float | None = MARGIN
    boundaries: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ConfigError(f"Cannot cast to '{self.precision}'; expected one of {', '.join(DTYPES)}.")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 1):
            raise ConfigError(f"A margin of {self.margin} was given; expected a number of at least 1.")

    @property
    def dtype(self) -> ir.DataType:
        return DTYPES[self.precision]

    @property
    def largest(self) -> float:
        """The largest |x| that may come to pass, margin included; infinite where ranges need no check."""
        return LARGEST if self.precision == "fp16" and self.margin is not None else math.inf


@dataclass(frozen=True, kw_only=True)
class CastPlan:
    """`high` nodes stay in FP32; those that only move values or dequantise for their neighbours are not in `kept`."""

    high: frozenset[ir.Node]
    kept: tuple[KeptNode, ...]
    ranges: Ranges


def plan_cast(graph: ir.Graph, absmax: Mapping[str, float], options: CastOptions) -> CastPlan:
    """Decide for every node of `graph`; `absmax` is the largest |x| observed of each float tensor, by name."""
    ranges = tensor_ranges(graph, absmax, options.margin or 1.0)
    judge = _Judge(graph, ranges, options)
    kept = {node: verdict for node in graph if is_float_node(node) and (verdict := judge.verdict(node)) is not None}
    _spread_over_quantised(graph, kept)
    high = frozenset(kept) | _followers(graph, kept)
    return CastPlan(high=high, kept=tuple(kept[node] for node in graph if node in kept), ranges=ranges)


def is_float_node(node: ir.Node) -> bool:
    """Whether the node computes with floats; integer and shape arithmetic is left alone."""
    if node.op_type in _TYPE_FREE:
        return False
    return any(True for _ in float_values(node))


def float_values(node: ir.Node) -> Iterator[ir.Value]:
    """The float32 inputs and outputs of a node."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield value


class _Judge:
    """What speaks against casting a node."""

    def __init__(self, graph: ir.Graph, ranges: Ranges, options: CastOptions) -> None:
        self.ranges = ranges
        self.options = options
        self.opset = graph.opset_imports[""]
        self.rms_norms = _rms_norms(graph)
        self.indices = _index_arithmetic(graph, ranges)
        self._fits: dict[ir.Value, bool] = {}

    def verdict(self, node: ir.Node) -> KeptNode | None:
        """Why the node stays in FP32, or None."""
        if node in self.rms_norms or node.op_type == "RMSNormalization":
            return self._kept(node, "rms_norm", self.rms_norms.get(node, node.outputs[0]))
        if node in self.indices:
            return self._kept(node, "index", node.outputs[0])
        if node.op_type == "Cast":
            return None if node.outputs[0].dtype != ir.DataType.FLOAT else self._range_verdict(node)
        if node.op_type not in _COMPUTE | LAYOUT | set(_QUANTISING) or not self._accepts(node):
            return self._kept(node, "operator", next(float_values(node)))
        lost = [value for value in float_values(node) if value.const_value is not None and not self.fits(node, value)]
        return self._kept(node, "constant", lost[0]) if lost else self._range_verdict(node)

    def fits(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a constant survives rounding: a scalar or scale in each number, a weight as a whole."""
        if value not in self._fits:
            each = node.op_type in _QUANTISING or (value.const_value is not None and value.const_value.size == 1)
            self._fits[value] = survives(value, self.options, each=each)
        return self._fits[value]

    def _accepts(self, node: ir.Node) -> bool:
        """Whether ONNX lets the operator read the low precision, at the graph's opset (Conv takes bfloat16 from 22)."""
        if node.domain:
            return False
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        allowed = {rule.type_param_str: rule.allowed_type_strs for rule in schema.type_constraints}
        wanted = f"tensor({self.options.dtype.name.lower()})"
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                rule = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
                if wanted not in allowed.get(rule, [rule]):
                    return False
        return True

    def _range_verdict(self, node: ir.Node) -> KeptNode | None:
        if math.isinf(self.options.largest):
            return None
        values = [value for value in float_values(node) if value.const_value is None]
        for value in values:
            if self.ranges.get(value) is None:
                return self._kept(node, "unobserved", value)
        worst = max(values, key=self._magnitude, default=None)
        if worst is None or self._magnitude(worst) <= self.options.largest:
            return None
        return self._kept(node, "overflow", worst)

    def _magnitude(self, value: ir.Value) -> float:
        found = self.ranges.get(value)
        return math.inf if found is None else found.magnitude

    def _kept(self, node: ir.Node, reason: Reason, value: ir.Value) -> KeptNode:
        found = self.ranges.get(value)
        return KeptNode(
            node=node.name or "",
            operator=node.op_type,
            reason=reason,
            tensor=value.name or "",
            absmax=None if found is None else found.shown,
        )


def survives(value: ir.Value, options: CastOptions, *, each: bool) -> bool:
    """Whether a constant keeps its values, `each` of them or as a whole, when it is rounded to the low precision."""
    if value.const_value is None:
        return True
    array = np.asarray(value.const_value.numpy(), dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows is the question
        rounded = array.astype(options.dtype.numpy()).astype(np.float32)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(array)):
        return False
    finite = np.isfinite(array)
    lost = np.where(finite, array - np.where(finite, rounded, 0.0), 0.0)
    tolerance = _TOLERANCE[options.precision]
    if each:
        return bool((np.abs(lost)[finite] <= tolerance * np.abs(array)[finite]).all())
    return bool(np.linalg.norm(lost) <= tolerance * np.linalg.norm(array[finite]))


def _rms_norms(graph: ir.Graph) -> dict[ir.Node, ir.Value]:
    """The nodes of every RMS normalisation, x / sqrt(mean(x * x) + epsilon) * weight, each with its x."""
    found: dict[ir.Node, ir.Value] = {}
    for node in graph:
        if node.op_type == "ReduceMean" and node.inputs[0] is not None:
            found.update(_rms_norm(node, node.inputs[0].producer()))
    return found


def _rms_norm(mean: ir.Node, square: ir.Node | None) -> dict[ir.Node, ir.Value]:
    if square is None or square.op_type not in ("Pow", "Mul") or square.inputs[0] is None:
        return {}
    squared = square.inputs[0]
    if square.op_type == "Mul" and square.inputs[1] is not squared:
        return {}
    chain = [square, mean]
    while len(readers := consumers(chain[-1].outputs[0])) == 1:
        node = readers[0]
        chain.append(node)
        if node.op_type in ("Div", "Mul") and squared in node.inputs:
            scaled = [user for user in consumers(node.outputs[0]) if user.op_type == "Mul" and _scales(user)]
            return dict.fromkeys([*chain, *scaled], squared)
        if node.op_type not in ("Add", "Cast", "Div", "Pow", "Reciprocal", "Sqrt"):
            break
    return {}


def _scales(node: ir.Node) -> bool:
    return any(value is not None and value.const_value is not None for value in node.inputs)


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def _index_arithmetic(graph: ir.Graph, ranges: Ranges) -> set[ir.Node]:
    """Float nodes that only compute integers from constants and integers: positions, buckets. FP16 miscounts at 2,049."""
    found: set[ir.Node] = set()
    for node in reversed(list(graph)):
        to_integer = not any(output.dtype in FLOATS for output in node.outputs)
        if not is_float_node(node) or node.op_type in _QUANTISING:
            continue
        read = [value for value in node.inputs if value is not None and value.dtype in FLOATS]
        for value in read if to_integer or node in found else []:
            producer, known = value.producer(), ranges.get(value)
            if producer is not None and known is not None and known.proven:
                found.add(producer)
    return found


def _spread_over_quantised(graph: ir.Graph, kept: dict[ir.Node, KeptNode]) -> None:
    """A Linear and its QuantizeLinear and DequantizeLinear nodes have one type: what fuses them needs that."""
    changed = True
    while changed:
        changed = False
        for node in graph:
            if node.op_type not in _QUANTISING:
                continue
            fused = [near for near in _neighbours(node) if near.op_type in (*_QUANTISING, *_LINEAR)]
            blamed = next((kept[one] for one in (node, *fused) if one in kept), None)
            for one in (node, *fused) if blamed is not None else ():
                if one not in kept and blamed is not None:
                    kept[one] = msgspec.structs.replace(blamed, node=one.name or "", operator=one.op_type)
                    changed = True


def _neighbours(node: ir.Node) -> list[ir.Node]:
    """What a QuantizeLinear feeds; what feeds a DequantizeLinear, and what it feeds."""
    found = consumers(node.outputs[0])
    source = node.inputs[0]
    producer = None if source is None or node.op_type == "QuantizeLinear" else source.producer()
    return found if producer is None else [producer, *found]


def _followers(graph: ir.Graph, kept: Mapping[ir.Node, KeptNode]) -> set[ir.Node]:
    """Nodes that only move values stay in FP32 between FP32 nodes, so that nothing is rounded on the way."""
    high: set[ir.Node] = set()
    for node in graph:
        sources = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        producers = [value.producer() for value in sources if value.const_value is None]
        if node.op_type in LAYOUT and producers and all(one in kept or one in high for one in producers):
            high.add(node)
    for node in reversed(list(graph)):
        readers = [user for output in node.outputs for user in consumers(output) if is_float_node(user)]
        moves = node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT
        if moves and readers and all(user in kept or user in high for user in readers):
            high.add(node)
    return high
