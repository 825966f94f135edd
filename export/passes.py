"""Graph passes on traced models: weights in the layout that MatMul reads, constants folded, axes named."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import optimize_ir

from edgevqa.calibration.linears import find_linears
from edgevqa.export.reshapes import settle_reshapes
from edgevqa.export.spec import GraphPlan

_SMALL = 4096  # elements; below this a constant may be folded, above it a node stays


def clean(model: ir.Model, plan: GraphPlan) -> ir.Model:
    """All passes, in order. The model is changed in place."""
    parameters = set(model.graph.initializers)
    fold_weight_transposes(model.graph)
    with quiet("onnxscript", "onnx_ir"):
        optimize_ir(
            model,
            input_size_limit=_SMALL,
            output_size_limit=_SMALL,
            should_fold=lambda node: _may_fold(node, parameters),
        )
    settle_reshapes(model)
    rename_axes(model.graph, plan.relabel)
    free_axes(model.graph, plan.free_axes)
    name_linears(model.graph)
    strip_metadata(model)
    return model


def _may_fold(node: ir.Node, parameters: set[str]) -> bool | None:
    """Parameters stay visible under their names; everything else follows the optimizer's rules."""
    if any(value is not None and value.name in parameters for value in node.inputs):
        return False
    return None


def fold_weight_transposes(graph: ir.Graph) -> None:
    """Store a Linear's weight as (in, out), which MatMul reads, instead of transposing it at load or run time.

    The transposed weight keeps the parameter's name; it is made when the file is written, not held in memory.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        if any(use.node.op_type != "Transpose" for use in weight.uses()):
            continue
        axes = node.attributes.get_ints("perm", list(reversed(range(len(weight.shape or ())))))
        _replace_users(graph, weight, transposed(weight.const_value, axes), axes)


def transposed(tensor: ir.TensorProtocol, axes: Sequence[int]) -> ir.LazyTensor:
    """A tensor that transposes `tensor` when its bytes are asked for."""
    shape = [tensor.shape.numpy()[axis] for axis in axes]

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(axes)), name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name or "")


def _replace_users(graph: ir.Graph, weight: ir.Value, tensor: ir.LazyTensor, axes: Sequence[int]) -> None:
    name = weight.name or ""
    users = [use.node for use in weight.uses() if list(use.node.attributes.get_ints("perm", axes)) == list(axes)]
    if len(users) != len(list(weight.uses())):
        return  # the same weight in two layouts: leave it
    value = ir.Value(name=name, type=weight.type, shape=tensor.shape, const_value=tensor)
    for user in users:
        user.outputs[0].replace_all_uses_with(value)
        graph.remove(user, safe=True)
    del graph.initializers[name]
    graph.initializers[name] = value


def rename_axes(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Give symbolic axes the names of the contract: `words + 17` becomes `keys`."""
    for value in _values(graph):
        if value.shape is None or value.shape.frozen:
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, ir.SymbolicDim) and str(size) in names:
                value.shape[axis] = ir.SymbolicDim(names[str(size)])


def free_axes(graph: ir.Graph, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Make input axes dynamic that were traced at size 1 because the graph broadcasts them."""
    for value in graph.inputs:
        for axis, name in axes.get(value.name or "", {}).items():
            if value.shape is not None:
                value.shape[axis] = ir.SymbolicDim(name)


def name_linears(graph: ir.Graph) -> None:
    """Name the nodes of Linear layers after their parameters, so that profiles, errors and reports name layers.

    A weight's second use gets `.1`, its bias's Add `.bias`.
    """
    for linear in find_linears(graph).values():
        for number, use in enumerate(linear.uses):
            use.node.name = linear.name if number == 0 else f"{linear.name}.{number}"
            if use.bias_add is not None:
                use.bias_add.name = f"{use.node.name}.bias"


def strip_metadata(model: ir.Model) -> None:
    """Drop what the tracer notes for debugging: it names source files of the exporting machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(model.graph):
        value.metadata_props.clear()


def _values(graph: ir.Graph) -> list[ir.Value]:
    found = [*graph.inputs, *graph.initializers.values()]
    return found + [output for node in graph for output in node.outputs]


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Hold back what loggers say below an error, and restore their levels."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
