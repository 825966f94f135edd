"""The decoder's keys and values on the GPU: one block, written in place, and used again by the next answer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.caches import cache_shape
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.dtypes import item_bytes, size_bytes
from edgevqa.runtime.sessions.trt.memory import slices
from edgevqa.runtime.sessions.trt.tensors import Buffer, DeviceTensor

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

    def append(self, outputs: Mapping[str, Tensor]) -> None:
        """Write `new_key.N` and `new_value.N` (batch, heads, 1, head) into slot `length`, without the host."""
        if self.length >= self.capacity:
            return  # the last token's keys: nobody attends to them
        with self._device.lane() as lane:
            self._buffer.write_on(lane)
            for name, past in self._tensors.items():
                new = self._on_device(outputs[name.replace("past_", "new_", 1)], name, past)
                new.use_on(lane)
                batch, heads, capacity, head = past.shape
                row = head * item_bytes(past.dtype)
                to = (past.address + self.length * row, capacity * row)
                lane.copy_rows(to, (new.address, row), row, batch * heads)
        self.length += 1

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

    def _on_device(self, value: Tensor, name: str, past: DeviceTensor) -> DeviceTensor:
        expected = (past.shape[0], past.shape[1], 1, past.shape[3])
        if not isinstance(value, DeviceTensor) or value.shape != expected or value.dtype != past.dtype:
            raise EdgeVQAError(
                f"The cache of '{name}' was given {type(value).__name__} {value.shape}; expected a tensor {expected} of "
                f"{past.dtype} that this session's decoder gave."
            )
        return value
