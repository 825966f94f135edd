"""The dtypes of engines: their names in TensorRT, sizes in bytes, and what numpy holds them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.sessions.base import Array

TENSORRT_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


def item_bytes(dtype: str) -> int:
    """Bytes of one number. Raises `BundleError` for a dtype that engines of ours never take."""
    if dtype not in _ITEM_BYTES:
        raise BundleError(f"An engine has a tensor of {dtype}; expected {', '.join(_ITEM_BYTES)}. Export again.")
    return _ITEM_BYTES[dtype]


def size_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor; an empty one still has an address, so at least one."""
    return max(1, math.prod(shape) * item_bytes(dtype))


def engine_dtype(array: Array, wanted: str) -> str:
    """The dtype that an array has for an engine: float32 counts as bfloat16, which numpy lacks, and is rounded to it."""
    return "bfloat16" if wanted == "bfloat16" and array.dtype == np.float32 else str(array.dtype)


def to_bytes(array: Array, wanted: str) -> Array:
    """The bytes of a C-contiguous array as the engine reads them, uint8 (bytes,)."""
    if wanted == "bfloat16" and array.dtype == np.float32:
        array = _rounded(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def from_bytes(data: Array, shape: Sequence[int], dtype: str) -> Array:
    """An array of its own from an engine's bytes; bfloat16 becomes float32, exactly."""
    if dtype == "bfloat16":
        widened = data.view(np.uint16).astype(np.uint32) << 16
        return widened.view(np.float32).reshape(shape)
    return data.view(np.dtype(dtype)).reshape(shape).copy()


def _rounded(array: Array) -> Array:
    """The upper halves of float32 numbers, rounded to nearest even; NaN stays NaN. uint16."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    even = (bits >> 16) & np.uint32(1)
    upper = ((bits + np.uint32(0x7FFF) + even) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(array), quiet, upper)
