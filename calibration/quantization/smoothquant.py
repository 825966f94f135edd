"""SmoothQuant: move outliers of activations into weights, exactly, wherever the graph allows it.

A Linear's input x and weight W become x / s and s W, with a positive s for every channel; dividing by s is folded into
what makes x, so that nothing is added to the graph. Source: Xiao et al., SmoothQuant (ICML 2023), equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevqa.calibration.linears import Linear, LinearUse
from edgevqa.calibration.quantization.formats import Floats

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LARGEST_LOGARITHM = 9.0  # |log s|: what FP16 has room for on either side
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SWAP_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Where dividing a tensor by s goes: into vectors (a norm's weight and bias), or into a Linear's outputs."""

    vectors: tuple[str, ...] = ()
    linear: str | None = None


def find_folds(value: ir.Value, linears: Mapping[str, Linear]) -> tuple[Fold, ...] | None:
    """How to divide `value` by a vector over its last axis, or None where that cannot be done exactly.

    All that reads `value` must be Linear layers of `linears`, which take the inverse into their weights.
    """
    readers = {id(use.node) for linear in linears.values() for use in linear.uses}
    if value.is_graph_output() or any(id(use.node) not in readers or use.idx != 0 for use in value.uses()):
        return None
    node = value.producer()
    if node is None:
        return None
    return _fold_norm(node) or _fold_linears(value, linears)


def _fold_norm(node: ir.Node) -> tuple[Fold, ...] | None:
    """Into the weight and bias of a norm, or the weight that an RMSNorm multiplies with at its end."""
    if node.op_type in _NORMS:
        vectors = [value for value in node.inputs[1:] if value is not None]
    elif node.op_type == "Mul":
        vectors = [value for value in node.inputs if value is not None and value.const_value is not None]
    else:
        return None
    owned = all(value.is_initializer() and len(value.uses()) == 1 and len(value.shape or ()) == 1 for value in vectors)
    return (Fold(vectors=tuple(str(value.name) for value in vectors)),) if vectors and owned else None


def _fold_linears(value: ir.Value, linears: Mapping[str, Linear]) -> tuple[Fold, ...] | None:
    """Into the outputs of the Linear layers that `value` depends on channel by channel and in proportion."""
    sources = _sources(value)
    if not sources:
        return None
    owners = {id(_result(use)): linear for linear in linears.values() for use in linear.uses}
    found = [owners.get(id(source)) for source in sources]
    reached = {id(source) for source in sources}
    for linear in found:
        if linear is None or not _owns_parameters(linear) or linear.head:
            return None
        if any(id(_result(use)) not in reached for use in linear.uses):
            return None  # another use would be divided too
    return tuple(Fold(linear=name) for name in dict.fromkeys(linear.name for linear in found if linear is not None))


def _owns_parameters(linear: Linear) -> bool:
    """Whether weight and bias serve this layer alone."""
    nodes = {id(use.node) for use in linear.uses} | {id(use.bias_add) for use in linear.uses}
    values = [value for value in (linear.weight, linear.bias) if value is not None]
    return all(value.is_initializer() and all(id(use.node) in nodes for use in value.uses()) for value in values)


def _result(use: LinearUse) -> ir.Value:
    return use.output if use.bias_add is None else use.bias_add.outputs[0]


def _sources(value: ir.Value) -> list[ir.Value]:
    """The tensors whose channels pass unmixed into those of `value`: itself, through ReLU, a gate, or attention."""
    node = value.producer()
    if node is None:
        return []
    if node.op_type == "Relu":
        return _only(node.inputs[0])
    if node.op_type == "Mul":
        return _gated(node)
    if node.op_type == "Reshape":
        return _attended(node)
    return [value]


def _gated(node: ir.Node) -> list[ir.Value]:
    """The factor of a gated feed-forward layer that no activation function touches."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if value is not None and maker is not None and maker.op_type in ("MatMul", "Gemm", "Add"):
            return _only(value)
    return []


def _attended(merge: ir.Node) -> list[ir.Value]:
    """The values that attention mixes over rows, before their heads were split: heads in and out in one order."""
    swapped = merge.inputs[0]
    swap = None if swapped is None else swapped.producer()
    if swap is None or swap.op_type != "Transpose" or tuple(swap.attributes.get_ints("perm", [])) != _SWAP_HEADS:
        return []
    mixed = swap.inputs[0]
    product = None if mixed is None else mixed.producer()
    if product is None or product.op_type != "MatMul" or mixed is None or len(mixed.uses()) != 1:
        return []
    values = product.inputs[1]
    found: list[ir.Value] = []
    for part in _parts(values):
        found += _unsplit(part, _heads(mixed))
    return found if found and len(found) == len(_parts(values)) else []


def _parts(value: ir.Value | None) -> list[ir.Value]:
    """The tensors that are joined along the rows, or the tensor itself."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return []
    node = value.producer()
    if node is not None and node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 2:
        return [part for source in node.inputs for part in _parts(source)]
    return [value]


def _unsplit(value: ir.Value, heads: tuple[int, int] | None) -> list[ir.Value]:
    """Undo the split of (batch, rows, channels) into (batch, heads, rows, head)."""
    swap = value.producer()
    if swap is None or swap.op_type != "Transpose" or tuple(swap.attributes.get_ints("perm", [])) != _SWAP_HEADS:
        return []
    split = swap.inputs[0]
    node = None if split is None else split.producer()
    if split is None or node is None or node.op_type != "Reshape" or len(split.uses()) != 1:
        return []
    if heads is None or _heads(value) != heads:
        return []
    return _only(node.inputs[0])


def _heads(value: ir.Value) -> tuple[int, int] | None:
    """Sizes of the axes heads and head of (batch, heads, rows, head)."""
    shape = value.shape
    if shape is None or len(shape) != 4:
        return None
    heads, head = shape[1], shape[3]
    return (heads, head) if isinstance(heads, int) and isinstance(head, int) else None


def _only(value: ir.Value | None) -> list[ir.Value]:
    """`value` where nothing else reads it."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return []
    return [value]


def smoothing(absmax: Floats, weights: Iterable[Floats], alpha: float) -> Floats:
    """The s (channels,) for inputs of largest |x| `absmax` (channels,) and `weights` (channels, outputs), float32.

    Its geometric mean is 1; channels that are always zero, here or there, keep 1.
    """
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    alive = (absmax > 0) & (largest > 0)
    logarithm = np.zeros(len(absmax), dtype=np.float64)
    logarithm[alive] = alpha * np.log(absmax[alive]) - (1 - alpha) * np.log(largest[alive])
    if alive.any():
        logarithm[alive] -= logarithm[alive].mean()
    return np.exp(np.clip(logarithm, -LARGEST_LOGARITHM, LARGEST_LOGARITHM)).astype(np.float32)
