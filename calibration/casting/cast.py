"""Cast a float32 graph to FP16 or BF16, and keep in FP32 what would overflow or lose the answer."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf

import msgspec
import numpy as np
import onnx_ir as ir

from edgevqa.calibration.casting.plan import (
    CastOptions,
    CastPlan,
    CastPrecision,
    KeptNode,
    consumers,
    is_float_node,
    plan_cast,
)
from edgevqa.calibration.casting.ranges import FLOATS
from edgevqa.runtime.errors import ConfigError

_QDQ_OPSET = 19  # the first whose scales may be FP16


class CastReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `cast_graph` did. `kept` names every node that computes in FP32, `casts` counts the Cast nodes added.

    `limit` is the largest |x| in calibration that was let into the low precision, None where nothing was checked.
    """

    precision: CastPrecision
    limit: float | None
    casts: int
    kept: tuple[KeptNode, ...]


def cast_graph(model: ir.Model, absmax: Mapping[str, float], options: CastOptions) -> CastReport:
    """Cast `model`, a graph of float32, in place. Quantised parts keep their integers; their scales are cast.

    `absmax` is the largest |x| that calibration observed of each float tensor, by name. A tensor is let into FP16 when
    it stays finite with `options.margin` to spare, or when constants prove that it does; nodes around any other tensor
    stay in FP32, as do RMS normalisations, sums, powers and index arithmetic. LayerNormalization stays one operator.

    Raises `ConfigError` when a boundary is to have a type that its values do not fit in, or the opset is too low.
    """
    graph = model.graph
    _check_graph(model)
    plan = plan_cast(graph, absmax, options)
    caster = _Caster(graph, plan, options)
    caster.set_types()
    caster.connect()
    caster.finish()
    return CastReport(
        precision=options.precision,
        limit=options.largest / options.margin if options.margin and not isinf(options.largest) else None,
        casts=caster.count,
        kept=plan.kept,
    )


class _Caster:
    """Gives every node one float type, and puts a Cast, once a tensor and type, where two of them meet."""

    def __init__(self, graph: ir.Graph, plan: CastPlan, options: CastOptions) -> None:
        self.graph = graph
        self.plan = plan
        self.options = options
        self.count = 0
        self._nodes = [node for node in graph if is_float_node(node)]
        # What each node reads and gives as float32 now; types change below.
        self._reads = {
            node: [place for place, value in enumerate(node.inputs) if value is not None and _is_float32(value)]
            for node in self._nodes
        }
        self._outputs = {node: [value for value in node.outputs if _is_float32(value)] for node in self._nodes}
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {value.name for node in graph for value in node.outputs} | set(graph.initializers)

    def type_of(self, node: ir.Node) -> ir.DataType:
        return ir.DataType.FLOAT if node in self.plan.high else self.options.dtype

    def set_types(self) -> None:
        """Graph inputs get their boundary's type, outputs of nodes the node's."""
        for value in self.graph.inputs:
            if _is_float32(value):
                value.dtype = self._boundary(value)
        for node in self._nodes:
            for output in self._outputs[node]:
                output.dtype = self.type_of(node)
            if node.op_type == "Cast" and self._outputs[node]:
                node.attributes["to"] = ir.AttrInt64("to", int(self.type_of(node)))

    def connect(self) -> None:
        """Let every node read its inputs in its own type."""
        for node in self._nodes:
            if node.op_type == "Cast":
                continue  # reads any type
            for place in self._reads[node]:
                value = node.inputs[place]
                if value is not None:
                    node.replace_input_with(place, self.read(value, self.type_of(node)))

    def read(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: itself, a converted constant, or the output of a Cast that is made once."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._cast:
            constant = value.name in self.graph.initializers
            self._cast[key] = self._convert(value, dtype) if constant else self._insert(value, dtype)
        return self._cast[key]

    def finish(self) -> None:
        """Graph outputs get their boundary's type and keep their names; what nobody reads any more goes."""
        for number, value in enumerate(self.graph.outputs):
            if value.dtype in FLOATS and value.dtype != (wanted := self._boundary(value)):
                self._output(number, value, wanted)
        for node in self._nodes:
            source = node.inputs[0] if node.op_type == "Cast" else None
            if source is not None and source.dtype == node.outputs[0].dtype:
                self._bypass(node, source)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _convert(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A constant in another type, made when it is written; it keeps its name where nobody reads the old one."""
        if value.const_value is None:
            raise RuntimeError(f"The initializer {value.name} has no value.")
        tensor = converted(value.const_value, dtype)
        if all(self._turns(user, dtype) for user in consumers(value)):
            name = value.name or ""
            del self.graph.initializers[name]
            value.name = f"{name}.float32"  # until its last reader has been turned over
        else:
            name = self._name(value, dtype)
        found = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
        self.graph.register_initializer(found)
        return found

    def _turns(self, node: ir.Node, dtype: ir.DataType) -> bool:
        """Whether the node will read its constants as `dtype`."""
        return node in self._reads and node.op_type != "Cast" and self.type_of(node) == dtype

    def _insert(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        self._check_narrowing(value, dtype)
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
        if source is None or source.dtype == dtype:
            return source or value
        node = ir.node("Cast", [source], {"to": int(dtype)})  # never one after another
        name = self._name(value, dtype)
        node.name = f"{name}.cast"
        output = node.outputs[0]
        output.name, output.dtype, output.shape = name, dtype, value.shape
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        self.count += 1
        return output

    def _output(self, number: int, value: ir.Value, wanted: ir.DataType) -> None:
        """Let a Cast give the graph's output, under its name."""
        name = value.name
        cast = self.read(value, wanted)
        value.name = self._name(value, value.dtype or wanted)
        cast.name = name
        self.graph.outputs[number] = cast

    def _bypass(self, node: ir.Node, source: ir.Value) -> None:
        """Take out a Cast that changes nothing."""
        if not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            self.graph.remove(node, safe=True)

    def _boundary(self, value: ir.Value) -> ir.DataType:
        """The type that the graph's input or output shall have. Raises `ConfigError` where its values do not fit."""
        wanted = self.options.boundaries.get(value.name or "", "float32")
        dtype = ir.DataType.FLOAT if wanted == "float32" else ir.DataType.from_numpy(np.dtype(wanted))
        if dtype != ir.DataType.FLOAT and not self._fits(value):
            raise ConfigError(
                f"'{value.name}' cannot be {wanted}: {self._described(value)} "
                "Leave it float32 in every graph that reads or writes it (`plan_boundaries`)."
            )
        return dtype

    def _check_narrowing(self, value: ir.Value, dtype: ir.DataType) -> None:
        if dtype != ir.DataType.FLOAT and value.dtype == ir.DataType.FLOAT and not self._fits(value):
            raise RuntimeError(f"A Cast would narrow '{value.name}': {self._described(value)}")

    def _fits(self, value: ir.Value) -> bool:
        found = self.plan.ranges.get(value)
        return isinf(self.options.largest) or (found is not None and found.magnitude <= self.options.largest)

    def _described(self, value: ir.Value) -> str:
        found = self.plan.ranges.get(value)
        if found is None:
            return "calibration did not observe it."
        return f"|x| up to {found.shown:g} was observed, and {found.magnitude:g} is to be expected."

    def _name(self, value: ir.Value, dtype: ir.DataType) -> str:
        name = f"{value.name}.{dtype.name.lower()}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _check_graph(model: ir.Model) -> None:
    """Raise `ConfigError` for what cannot be cast."""
    operators = {node.op_type for node in model.graph}
    if "QuantizeLinear" in operators and model.opset_imports[""] < _QDQ_OPSET:
        raise ConfigError(
            f"Quantised graphs need opset {_QDQ_OPSET} for FP16 scales; this one has {model.opset_imports['']}. "
            "Export the bundle again with a higher opset."
        )
    control = operators & {"If", "Loop", "Scan"}
    if control or len(model.functions):
        raise ConfigError(f"Graphs with {', '.join(sorted(control)) or 'functions'} cannot be cast.")
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise RuntimeError(f"Value {value.name} of node {node.name} has no type.")


def _is_float32(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """`tensor` in another type, converted when its bytes are asked for."""

    def evaluate() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):  # only where ranges are not checked
            return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "")
