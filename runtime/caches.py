"""What is kept between calls and between tokens: bounded caches, and the decoder's keys and values."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array, Session, Tensor

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """A cache bounded by entries and bytes that forgets what was used longest ago. Safe to use from several threads.

    A bound of 0 keeps nothing; a value larger than `max_bytes` is not kept.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value kept for `key`, which becomes the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, *, size_bytes: int) -> None:
        """Keep `value`, and drop the least recently used until both bounds hold."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self.size_bytes -= old[1]
            if size_bytes > self.max_bytes or self.max_items < 1:
                return
            self._entries[key] = (value, size_bytes)
            self.size_bytes += size_bytes
            while self.size_bytes > self.max_bytes or len(self._entries) > self.max_items:
                _, (_, dropped_bytes) = self._entries.popitem(last=False)
                self.size_bytes -= dropped_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.size_bytes = 0


def picture_key(rgb: Rgb) -> bytes:
    """A 32-byte key of what is seen: the RGB bytes and the size, not the file or the object."""
    digest = hashlib.blake2b(str(rgb.shape).encode(), digest_size=32)
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.digest()


class KeyValueCache(Protocol):
    """The decoder's past keys and values. `length` slots of `capacity` are filled."""

    length: int
    capacity: int

    def inputs(self) -> Mapping[str, Tensor | Array]:
        """`past_key.N` and `past_value.N` (batch, heads, capacity, head), owned by the cache, for the next `run`."""
        ...

    def append(self, outputs: Mapping[str, Tensor | Array]) -> None:
        """Write `new_key.N` and `new_value.N` (batch, heads, slots, head) from slot `length` on, as far as there is room."""
        ...

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Let row i continue what row `rows[i]` began."""
        ...


@runtime_checkable
class MakesKeyValueCache(Protocol):
    """A session that keeps the decoder's past in its own (device) memory: it has `make_cache`."""

    def make_cache(self, batch: int, capacity: int) -> KeyValueCache: ...


class HostKeyValueCache:
    """Preallocated host buffers, written in place: nothing is concatenated and no shape changes."""

    def __init__(self, inputs: Sequence[TensorSpec], batch: int, capacity: int) -> None:
        """`inputs` are the decoder's; those named `past_key.N` and `past_value.N` tell heads, head size and dtype."""
        self.length = 0
        self.capacity = capacity
        self._buffers: dict[str, Array] = {}
        for spec in inputs:
            if spec.name.startswith(("past_key.", "past_value.")):
                shape = cache_shape(spec, batch, capacity)
                self._buffers[spec.name] = np.zeros(shape, dtype=np.dtype(spec.dtype))

    def inputs(self) -> Mapping[str, Tensor | Array]:
        return self._buffers

    def append(self, outputs: Mapping[str, Tensor | Array]) -> None:
        first, stop = self.length, self.length
        for name, buffer in self._buffers.items():
            given = outputs[name.replace("past_", "new_", 1)]
            new = given if isinstance(given, np.ndarray) else given.numpy()
            stop = min(first + new.shape[2], self.capacity)  # nobody attends to the last token's keys
            buffer[:, :, first:stop] = new[:, :, : stop - first]
        self.length = stop

    def reorder(self, rows: NDArray[np.int64]) -> None:
        if np.array_equal(rows, np.arange(len(rows))):
            return
        for buffer in self._buffers.values():
            buffer[:, :, : self.length] = buffer[rows, :, : self.length]


def make_cache(session: Session, batch: int, capacity: int) -> KeyValueCache:
    """A cache where the session wants it: in its own memory, or the host's."""
    make = getattr(session, "make_cache", None)  # isinstance() of a Protocol is slow, and every answer would pay
    if make is not None:
        own: KeyValueCache = make(batch, capacity)
        return own
    return HostKeyValueCache(session.inputs, batch, capacity)


def cache_shape(spec: TensorSpec, batch: int, capacity: int) -> tuple[int, int, int, int]:
    """(batch, heads, capacity, head) of a decoder's past input. Raises `BundleError` without numbers for two of them."""
    heads, head = (spec.shape[1], spec.shape[3]) if len(spec.shape) == 4 else ("", "")
    if not isinstance(heads, int) or not isinstance(head, int):
        raise BundleError(
            f"The decoder's input '{spec.name}' has shape {spec.shape}; expected (batch, heads, capacity, head) with "
            "numbers for heads and head. Export the bundle again."
        )
    return batch, heads, capacity, head
