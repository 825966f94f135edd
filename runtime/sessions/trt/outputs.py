"""Memory for outputs whose shape depends on the data: TensorRT asks for it while it runs."""

from __future__ import annotations

from typing import Any, Protocol

from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.tensors import Buffer


class OutputMemory(Protocol):
    """What TensorRT was given: the memory of one output, and its shape."""

    buffer: Buffer | None
    shape: tuple[int, ...]

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int: ...


def make_output_memory(trt: Any, device: Device, lane: Lane) -> OutputMemory:
    """An allocator for one output; every launch gets memory of its own, which becomes the caller's."""

    class Memory(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer: Buffer | None = None
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            self.buffer = Buffer(device, lane, size)
            return self.buffer.address

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(tensor_name, memory, size, alignment, 0)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(int(size) for size in shape)

    made: OutputMemory = Memory()
    return made
