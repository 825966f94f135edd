"""Store embedding tables and the vocabulary head's weight as FP16 inside a graph that computes in FP32."""

from __future__ import annotations

import msgspec
import onnx_ir as ir

from edgevqa.calibration.casting.cast import converted
from edgevqa.calibration.casting.plan import CastOptions, consumers, survives
from edgevqa.calibration.linears import find_linears

SMALLEST_BYTES = 1 << 16  # of float32; tables below it are no part of the size of a model
_SUFFIX = "float32"


class TablesReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weights that are now FP16, and those that could not be (they hold values that FP16 cannot)."""

    stored: tuple[str, ...]
    refused: tuple[str, ...]


def store_tables(model: ir.Model, *, smallest_bytes: int = SMALLEST_BYTES) -> TablesReport:
    """Turn tables (a Gather's constant two-dimensional float32 data) and the vocabulary head's weight into FP16.

    A Cast to float32 follows the Gather, of the few rows that were looked up, or the weight itself. Nothing but the
    rounding of these weights changes. A weight that is both table and head is stored once.
    """
    graph = model.graph
    heads = {linear.weight for linear in find_linears(graph).values() if linear.head}
    found = [value for value in graph.initializers.values() if value in heads or _is_table(value)]
    large = [value for value in found if value.const_value is not None and value.const_value.nbytes >= smallest_bytes]
    stored = [value for value in large if survives(value, CastOptions(), each=False)]
    for value in stored:
        _store(graph, value)
    names = [value.name or "" for value in stored]
    return TablesReport(stored=tuple(names), refused=tuple(value.name or "" for value in large if value not in stored))


def _is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return False
    return any(user.op_type == "Gather" and user.inputs[0] is value for user in consumers(value))


def _store(graph: ir.Graph, value: ir.Value) -> None:
    """Convert one weight, and let each user read float32."""
    if value.const_value is None:
        raise RuntimeError(f"The initializer {value.name} has no value.")
    users = consumers(value)
    value.const_value = converted(value.const_value, ir.DataType.FLOAT16)
    value.dtype = ir.DataType.FLOAT16
    others = [user for user in users if not _gathers(user, value)]
    for user in users:
        if _gathers(user, value):
            _cast_rows(graph, user)
    if others:
        cast = _cast(value)
        graph.insert_before(others[0], cast)
        for user in others:
            for place, read in enumerate(user.inputs):
                if read is value:
                    user.replace_input_with(place, cast.outputs[0])


def _gathers(node: ir.Node, table: ir.Value) -> bool:
    return node.op_type == "Gather" and node.inputs[0] is table


def _cast_rows(graph: ir.Graph, gather: ir.Node) -> None:
    """Let a Gather give FP16, and a Cast behind it what the Gather gave before, under the same name."""
    rows = gather.outputs[0]
    users = list(rows.uses())
    rows.dtype = ir.DataType.FLOAT16
    cast = _cast(rows)
    name, rows.name = rows.name, f"{rows.name}.float16"
    cast.outputs[0].name = name
    graph.insert_after(gather, cast)
    for use in users:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    for number, output in enumerate(graph.outputs):
        if output is rows:
            graph.outputs[number] = cast.outputs[0]


def _cast(value: ir.Value) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.cast")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}.{_SUFFIX}", ir.DataType.FLOAT, value.shape
    return node
