"""Tensors on the GPU: they flow from graph to graph, and give their memory back when nobody has them any more."""

from __future__ import annotations

import weakref

from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.dtypes import from_bytes, item_bytes, size_bytes


class Buffer:
    """Device memory that lives as long as this object."""

    def __init__(self, device: Device, lane: Lane, size: int) -> None:
        block = lane.allocate(size)
        self.device = device
        self.address = block.address
        self._block = block
        device.lend()
        weakref.finalize(self, device.take_back, block)

    def read_on(self, lane: Lane) -> None:
        """Let `lane` read what the buffer's own lane has written."""
        if lane is not self._block.lane:
            lane.wait_for(self._block.lane)
            self._block.readers.add(lane)

    def write_on(self, lane: Lane) -> None:
        """Let `lane` write, after everyone who was given the buffer so far."""
        for other in (self._block.lane, *self._block.readers):
            lane.wait_for(other)
        if lane is not self._block.lane:
            self._block.readers.add(lane)


class DeviceTensor:
    """A value on the GPU that nobody changes, unless it is `fixed`."""

    def __init__(
        self, buffer: Buffer, shape: tuple[int, ...], dtype: str, *, offset: int = 0, keeps: object = None
    ) -> None:
        """With `keeps`, which lives as long as the tensor, it is a part at `offset` that others write in place."""
        self.buffer = buffer
        self.shape = shape
        self.dtype = dtype
        self.address = buffer.address + offset
        self.keeps = keeps

    @property
    def fixed(self) -> bool:
        """Whether it is written in place, at an address that stays."""
        return self.keeps is not None

    @property
    def nbytes(self) -> int:
        return size_bytes(self.shape, self.dtype)

    def use_on(self, lane: Lane) -> None:
        """Let `lane` read it."""
        if self.fixed:
            self.buffer.write_on(lane)  # in one order with those who write
        else:
            self.buffer.read_on(lane)

    def numpy(self) -> Array:
        """A host copy, owned by the caller; waits for the GPU. bfloat16 becomes float32."""
        with self.buffer.device.lane() as lane:
            self.use_on(lane)
            data = lane.download(self.address, self.nbytes)
        if 0 in self.shape:
            data = data[:0]
        return from_bytes(data, self.shape, self.dtype)

    def repeat_rows(self, copies: int) -> DeviceTensor:
        """Every row `copies` times, one after the other, as `numpy.repeat` does on axis 0; without the host."""
        row = self.nbytes // max(1, self.shape[0])
        device = self.buffer.device
        with device.lane() as lane:
            self.use_on(lane)
            repeated = Buffer(device, lane, self.nbytes * copies)
            for copy in range(copies):
                to = (repeated.address + copy * row, copies * row)
                lane.copy_rows(to, (self.address, row), row, self.shape[0])
        return DeviceTensor(repeated, (self.shape[0] * copies, *self.shape[1:]), self.dtype)


def upload(device: Device, lane: Lane, data: Array, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
    """Host bytes (uint8) as a tensor of the lane."""
    buffer = Buffer(device, lane, max(data.nbytes, item_bytes(dtype)))
    if data.nbytes:
        lane.upload(data, buffer.address)
    return DeviceTensor(buffer, shape, dtype)
