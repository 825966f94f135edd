"""The parts of the CUDA simulator: error codes, handles, streams, and memory that knows what was written."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.simulators.writes import Writes

Bytes = NDArray[np.uint8]
FIRST_ADDRESS = 0x10_0000_0000
ALIGNMENT = 256


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrMemoryPoolsSupported = 115


class Handle:
    """An opaque handle; like cuda-python's it becomes a number by `int`."""

    count = 0

    def __init__(self, kind: str) -> None:
        Handle.count += 1
        self.kind = kind
        self.number = 0xABC000 + Handle.count
        self.alive = True

    def __int__(self) -> int:
        return self.number


class Op:
    """Work that was given to a stream. `places` are the (address, size) that it will touch."""

    def __init__(self, what: str, places: list[tuple[int, int]], run: Callable[[], None]) -> None:
        self.what = what
        self.places = places
        self.run = run


class Stream(Handle):
    def __init__(self) -> None:
        super().__init__("stream")
        self.queue: deque[Op] = deque()
        self.capturing: list[Op] | None = None
        self.capturer: int | None = None


class Event(Handle):
    """`mark` is how much of a stream's work must be done."""

    def __init__(self) -> None:
        super().__init__("event")
        self.mark: tuple[Stream, Op] | None = None


class Memory:
    """One allocation. `order` is the stream in whose order it was allocated or freed."""

    def __init__(self, address: int, data: Bytes, kind: str, stream: Stream | None) -> None:
        self.address = address
        self.data = data
        self.written = np.zeros(len(data), dtype=bool)
        self.writes = Writes(len(data))
        self.kind = kind
        self.stream = stream
        self.there = stream is None
        self.freeing = False


class Properties:
    name = b"Simulated GPU"
    major, minor = 8, 6
    integrated = 0
