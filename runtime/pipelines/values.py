"""Values between graphs, on the host or a device: split into rows, joined, repeated, and kept in caches."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from edgevqa.runtime.caches import LruCache
from edgevqa.runtime.sessions.base import Array, RepeatsRows, Tensor

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
V = TypeVar("V")
Value: TypeAlias = "Tensor | Array"
MIB = 1 << 20


def host(value: Value) -> Array:
    """The value as an array on the host."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def split(batch: Value) -> list[Value]:
    """The rows of a value, each (1, ...); a single row stays where it is."""
    if batch.shape[0] == 1:
        return [batch]
    rows = host(batch)
    return [np.array(rows[row : row + 1]) for row in range(rows.shape[0])]


def join(rows: Sequence[Value]) -> Value:
    """Rows one after the other; a single one stays where it is."""
    return rows[0] if len(rows) == 1 else np.concatenate([host(row) for row in rows])


def repeat(value: Value, copies: int) -> Value:
    """Every row `copies` times, one after the other."""
    if copies == 1:
        return value
    if isinstance(value, RepeatsRows):
        return value.repeat_rows(copies)
    repeated: Array = np.repeat(host(value), copies, axis=0)
    return repeated


def size_bytes(value: Value) -> int:
    """Bytes of a kept value; 4 a number are assumed where a tensor does not tell."""
    told = getattr(value, "nbytes", None)
    return told if isinstance(told, int) else math.prod(value.shape) * 4


def recall(
    cache: LruCache[K, V],
    items: Mapping[K, T],
    compute: Callable[[Sequence[T]], list[V]],
    size: Callable[[V], int],
) -> tuple[dict[K, V], int]:
    """A value for every key, from the cache or computed in one batch and kept; and how many were computed."""
    rows = {key: kept for key in items if (kept := cache.get(key)) is not None}
    missing = [key for key in items if key not in rows]
    if missing:
        for key, row in zip(missing, compute([items[key] for key in missing]), strict=True):
            cache.put(key, row, size_bytes=size(row))
            rows[key] = row
    return rows, len(missing)
