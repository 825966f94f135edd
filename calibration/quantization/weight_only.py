"""Weights alone quantised, in blocks of inputs: for a decoder whose time goes into reading its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevqa.calibration.quantization.formats import Floats
from edgevqa.calibration.quantization.recipe import WeightBits

LEVELS: dict[WeightBits, int] = {"int8": 127, "int4": 7}
_PART = 1 << 18  # elements
_SHARES: dict[WeightBits, tuple[float, ...]] = {"int8": (1.0,), "int4": (1.0, 0.95, 0.9, 0.85, 0.8)}


def store_blocks(weight: Floats, size: int, bits: WeightBits) -> tuple[NDArray[np.number], Floats]:
    """A weight (in, out) as integers of the same shape, and scales (in / size, out)."""
    found = np.empty(weight.shape, np.int8 if bits == "int8" else ir.DataType.INT4.numpy())
    scales = np.empty((len(weight) // size, weight.shape[1]), np.float32)
    for rows, blocks in _parts(weight, size):
        stored, scales[blocks] = _quantised(weight[rows], size, bits)
        found[rows] = stored.reshape(weight[rows].shape)
    return found, scales


def round_blocks(weight: Floats, size: int, bits: WeightBits) -> Floats:
    """A weight (in, out) after quantising and back, float32."""
    rounded: Floats = np.empty_like(weight)
    for rows, _ in _parts(weight, size):
        stored, scales = _quantised(weight[rows], size, bits)
        rounded[rows] = (stored * scales[:, None]).reshape(weight[rows].shape)
    return rounded


def _parts(weight: Floats, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows of the weight, and their blocks, a few at a time: what is computed for them stays in the processor's cache."""
    step = max(1, _PART // (size * weight.shape[1]))
    for first in range(0, len(weight) // size, step):
        yield slice(first * size, (first + step) * size), slice(first, first + step)


def _quantised(weight: Floats, size: int, bits: WeightBits) -> tuple[Floats, Floats]:
    """Integers as float32 (blocks, size, out), and scales (blocks, out): of a few, those with the least error."""
    blocks = weight.reshape(-1, size, weight.shape[1])
    levels = LEVELS[bits]
    widest = np.maximum(np.abs(blocks).max(axis=1) / levels, 2.0**-14).astype(np.float16).astype(np.float32)
    best, least = widest, np.full(widest.shape, np.inf, dtype=np.float32)
    for share in _SHARES[bits]:
        scales = (widest * np.float32(share)).astype(np.float16).astype(np.float32)
        noise = np.square(_stored(blocks, scales, levels) * scales[:, None] - blocks).sum(axis=1)
        best, least = np.where(noise < least, scales, best), np.minimum(noise, least)
    return _stored(blocks, best, levels), best


def _stored(blocks: Floats, scales: Floats, levels: int) -> Floats:
    stored: Floats = np.clip(np.rint(blocks / scales[:, None]), -levels, levels)
    return stored


class BlockTensors:
    """A weight's integers and scales as ONNX tensors that are computed when they are written; two INT4 share a byte.

    `read` gives the weight (in, out) with `shape`; both tensors are transposed where it is stored (out, in). What is
    computed for the first of them that is asked for is kept until the other one was.
    """

    def __init__(
        self, read: Callable[[], Floats], shape: tuple[int, int], size: int, bits: WeightBits, *, transposed: bool
    ) -> None:
        self._read, self._shape, self._size = read, shape, size
        self._bits: WeightBits = bits
        self._transposed = transposed
        self._waiting: dict[str, NDArray[np.number]] = {}

    def integers(self, name: str) -> ir.TensorProtocol:
        """The integers, of the weight's shape."""
        dtype = ir.DataType.INT8 if self._bits == "int8" else ir.DataType.INT4
        return self._lazy("integers", name, dtype, self._shape)

    def scales(self, name: str, *, flat: bool) -> ir.TensorProtocol:
        """The scales, float32, one for `size` inputs of an output; `flat`: (out,), of a weight that is one block."""
        shape = (self._shape[0] // self._size, self._shape[1])
        return self._lazy("scales", name, ir.DataType.FLOAT, shape[1:] if flat else shape)

    def _lazy(self, part: str, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        sides = shape[::-1] if self._transposed else shape

        def evaluate() -> ir.TensorProtocol:
            return ir.Tensor(self._take(part).reshape(sides), dtype=dtype, name=name)

        return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(sides), name=name)

    def _take(self, part: str) -> NDArray[np.number]:
        if part not in self._waiting:
            integers, scales = store_blocks(self._read(), self._size, self._bits)
            self._waiting = {"integers": integers, "scales": scales}
        found = self._waiting.pop(part)
        return np.ascontiguousarray(found.T if self._transposed else found)
