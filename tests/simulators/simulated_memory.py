"""The memory of the CUDA simulator: what is allocated, on the GPU and pinned, and who may use it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.simulators.cuda_parts import ALIGNMENT, Bytes, Memory
from tests.simulators.writes import SimulatorError


class DeviceMemory:
    """Allocations by address."""

    def __init__(self) -> None:
        self.device: dict[int, Memory] = {}
        self.host: dict[int, Memory] = {}

    def bytes_at(self, address: int, size: int, *, on_host: bool = False) -> tuple[Bytes, NDArray[np.bool_]]:
        """The bytes of a range, and which were written. Raises where the range is in no living allocation."""
        memory, start = self.place(address, size, on_host=on_host)
        return memory.data[start : start + size], memory.written[start : start + size]

    def place(self, address: int, size: int, *, on_host: bool = False) -> tuple[Memory, int]:
        """The allocation that a range is in, and where in it. Raises where it is in none that is there now."""
        memory = self._find(address, size, on_host=on_host)
        if not memory.there:
            raise SimulatorError(f"memory at {address:#x} is used before its stream allocated it")
        return memory, address - memory.address

    def _find(self, address: int, size: int, *, on_host: bool) -> Memory:
        for memory in list((self.host if on_host else self.device).values()):  # threads allocate meanwhile
            if memory.address <= address and address + size <= memory.address + len(memory.data):
                return memory
        where = "pinned host" if on_host else "device"
        raise SimulatorError(f"{size} bytes at {address:#x} are in no {where} memory: freed, too small, or foreign")

    def _usable(self, address: int, size: int, *, on_host: bool) -> None:
        """Raise unless a range may be given to a stream now."""
        if self._find(address, size, on_host=on_host).freeing:
            raise SimulatorError(f"{address:#x} is used after it was freed")

    def usable(self, address: int, size: int) -> None:
        """Raise unless TensorRT may be given a device address."""
        self._usable(address, size, on_host=False)
        if address % ALIGNMENT:
            raise SimulatorError(f"{address:#x} is not aligned to {ALIGNMENT} bytes")
