"""The decoder's keys and values on the GPU: one block, written in place, and used again by the next answer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.caches import cache_shape
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.checks import check_new_slots
from edgevqa.runtime.sessions.trt.captured import Value
from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.dtypes import engine_dtype, item_bytes, size_bytes, to_bytes
from edgevqa.runtime.sessions.trt.memory import slices
from edgevqa.runtime.sessions.trt.tensors import Buffer, DeviceTensor, upload

KEPT = 4
"""Blocks that wait for the next answer: their addresses, and what was captured with them, stay the same."""


class CacheBlocks:
    """The blocks of a session's caches by size; `clear` lets them go."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._free: deque[tuple[int, Buffer]] = deque(maxlen=KEPT)

    def take(self, lane: Lane, size: int) -> Buffer:
        """A block of `size` bytes, whose content is anything."""
        for entry in list(self._free):
            if entry[0] == size:
                try:
                    self._free.remove(entry)
                except ValueError:  # another thread took it
                    continue
                return entry[1]
        return Buffer(self.device, lane, size)

    def give_back(self, size: int, buffer: Buffer) -> None:
        """Called from the garbage collector too."""
        self._free.append((size, buffer))

    def clear(self) -> None:
        self._free = deque(maxlen=0)


class _Lease:
    """A cache's hold on its block, which ends with the last of its tensors."""


class DeviceKeyValueCache:
    """`past_key.N` and `past_value.N` on the GPU. New slots are written in place; no shape and no address changes."""

    def __init__(self, blocks: CacheBlocks, inputs: Sequence[TensorSpec], batch: int, capacity: int) -> None:
        """`inputs` are the decoder's. Raises `BundleError` where they tell no heads and head size."""
        self.length = 0
        self.capacity = capacity
        self._device = blocks.device
        specs = [spec for spec in inputs if spec.name.startswith(("past_key.", "past_value."))]
        shapes = {spec.name: cache_shape(spec, batch, capacity) for spec in specs}
        offsets, total = slices(size_bytes(shapes[spec.name], spec.dtype) for spec in specs)
        with self._device.lane() as lane:
            self._buffer = blocks.take(lane, max(total, 1))
            self._buffer.write_on(lane)
            lane.cuda.fill(self._buffer.address, 0, max(total, 1), lane.stream)
        lease = _Lease()
        weakref.finalize(lease, blocks.give_back, max(total, 1), self._buffer)
        self._tensors = {
            spec.name: DeviceTensor(self._buffer, shapes[spec.name], spec.dtype, offset=offset, keeps=lease)
            for spec, offset in zip(specs, offsets, strict=True)
        }

    def inputs(self) -> Mapping[str, Tensor | Array]:
        """The tensors (batch, heads, capacity, head); they change with `append` and `reorder`."""
        return self._tensors

    def append(self, outputs: Mapping[str, Tensor | Array]) -> None:
        """Write `new_key.N` and `new_value.N` (batch, heads, slots, head) from slot `length` on, as far as there is room.

        The session's own tensors are copied on the GPU, anything else is uploaded.
        """
        news = {name: self._own(outputs[name.replace("past_", "new_", 1)]) for name in self._tensors}
        slots = check_new_slots(
            {name: (past.dtype, past.shape) for name, past in self._tensors.items()},
            {name: (_dtype(new, self._tensors[name].dtype), new.shape) for name, new in news.items()},
        )
        kept = min(slots, self.capacity - self.length)  # nobody attends to the last token's keys
        if kept < 1:
            return
        with self._device.lane() as lane:
            self._buffer.write_on(lane)
            for name, past in self._tensors.items():
                new = self._on_device(lane, news[name], past.dtype)
                new.use_on(lane)
                batch, heads, capacity, head = past.shape
                row = head * item_bytes(past.dtype)
                to = (past.address + self.length * row, capacity * row)
                lane.copy_rows(to, (new.address, slots * row), kept * row, batch * heads)
        self.length += kept

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Let row i continue what row `rows[i]` began, also where rows cross."""
        moved = [(row, source) for row, source in enumerate(rows.tolist()) if row != source]
        if not moved or self.length == 0:
            return
        with self._device.lane() as lane:
            self._buffer.write_on(lane)
            for past in self._tensors.values():
                self._reorder(lane, past, moved)

    def _reorder(self, lane: Lane, past: DeviceTensor, moved: list[tuple[int, int]]) -> None:
        """Gather the filled slots of the rows that move, then put them where they belong."""
        _, heads, capacity, head = past.shape
        slot = head * item_bytes(past.dtype)
        filled, row = self.length * slot, heads * capacity * slot
        gathered = Buffer(self._device, lane, len(moved) * heads * filled)
        for place, (_, source) in enumerate(moved):
            to = (gathered.address + place * heads * filled, filled)
            lane.copy_rows(to, (past.address + source * row, capacity * slot), filled, heads)
        for place, (target, _) in enumerate(moved):
            part = (gathered.address + place * heads * filled, filled)
            lane.copy_rows((past.address + target * row, capacity * slot), part, filled, heads)

    def _own(self, value: Tensor | Array) -> Value:
        """The session's own tensors as they are; everything else on the host."""
        if isinstance(value, DeviceTensor) and value.buffer.device is self._device:
            return value
        return value if isinstance(value, np.ndarray) else value.numpy()

    def _on_device(self, lane: Lane, value: Value, dtype: str) -> DeviceTensor:
        if isinstance(value, DeviceTensor):
            return value
        return upload(self._device, lane, to_bytes(value, dtype), value.shape, dtype)


def _dtype(value: Value, wanted: str) -> str:
    return value.dtype if isinstance(value, DeviceTensor) else engine_dtype(value, wanted)
