"""Weights alone quantised, in blocks of inputs: for a decoder whose time goes into reading its weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevqa.calibration.quantization.formats import Floats
from edgevqa.calibration.quantization.recipe import WeightBits

LEVELS: dict[WeightBits, int] = {"int8": 127, "int4": 7}
_SHARES: dict[WeightBits, tuple[float, ...]] = {"int8": (1.0,), "int4": (1.0, 0.95, 0.9, 0.85, 0.8)}


def store_blocks(weight: Floats, size: int, bits: WeightBits) -> tuple[NDArray[np.number], Floats]:
    """A weight (in, out) as integers of the same shape, and scales (in / size, out)."""
    stored, scales = _quantised(weight, size, bits)
    kind = np.int8 if bits == "int8" else ir.DataType.INT4.numpy()
    return stored.reshape(weight.shape).astype(kind), scales


def round_blocks(weight: Floats, size: int, bits: WeightBits) -> Floats:
    """A weight (in, out) after quantising and back, float32."""
    stored, scales = _quantised(weight, size, bits)
    rounded: Floats = (stored * scales[:, None]).reshape(weight.shape)
    return rounded


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


def tensor_of(stored: NDArray[np.number], bits: WeightBits, name: str) -> ir.TensorProtocol:
    """The integers as an ONNX tensor; two INT4 share a byte."""
    dtype = ir.DataType.INT8 if bits == "int8" else ir.DataType.INT4
    return ir.Tensor(stored, dtype=dtype, name=name)
