"""The GPU at work: lanes (a stream each, with its memory) that threads take in turn, shared by every session of a process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.sessions.trt.driver import Cuda, HostBlock
from edgevqa.runtime.sessions.trt.memory import FreeBlocks, block_bytes

KEPT_BYTES = 256 << 20
"""Of freed device memory, a lane keeps so much for its next tensors."""
STAGED_BYTES = 64 << 20
"""When so many bytes of pinned memory are on their way to the GPU, the next upload waits for it."""


class Traffic(msgspec.Struct):
    """What was copied, in calls and bytes; for tests and measurements."""

    uploads: int = 0
    upload_bytes: int = 0
    downloads: int = 0
    download_bytes: int = 0
    device_copies: int = 0
    launches: int = 0
    replays: int = 0


class Block:
    """Device memory of one lane, and the lanes whose work reads it: they are waited for before it is used again."""

    __slots__ = ("address", "lane", "readers", "size")

    def __init__(self, address: int, size: int, lane: Lane) -> None:
        self.address = address
        self.size = size
        self.lane = lane
        self.readers: set[Lane] = set()


class Lane:
    """A stream with its own memory, held by one thread at a time.

    Everything a lane does is in one order, so memory that its tensors left can be used again without waiting.
    """

    def __init__(self, cuda: Cuda, traffic: Traffic) -> None:
        self.cuda = cuda
        self.traffic = traffic
        self.stream: Any = cuda.create_stream()
        self.lock = threading.Lock()  # held while capturing, and to put a mark into the stream
        self.returned: deque[Block] = deque()  # from any thread, and from the garbage collector
        self._event: Any = cuda.create_event()
        self._free = FreeBlocks(KEPT_BYTES)
        self._pinned: dict[tuple[int, bool], list[HostBlock]] = {}
        self._all_pinned: list[HostBlock] = []
        self._bound: list[tuple[tuple[int, bool], HostBlock]] = []  # for a launch that was not given yet
        self._staged: list[tuple[tuple[int, bool], HostBlock]] = []
        self._staged_bytes = 0

    def allocate(self, size: int) -> Block:
        """Device memory, uninitialised; it comes back by `returned`."""
        self._drain()
        size = block_bytes(size)
        address = self._free.take(size)
        return Block(self._malloc(size) if address is None else address, size, self)

    def upload(self, data: Array, address: int) -> None:
        """Copy bytes to the device; `data` may be changed afterwards."""
        block = self.stage(data, mapped=False)
        self.cuda.upload(address, block.address, data.nbytes, self.stream)
        self._give(self._bound.pop())
        self.traffic.uploads += 1
        self.traffic.upload_bytes += data.nbytes

    def stage(self, data: Array, *, mapped: bool) -> HostBlock:
        """A copy of bytes in pinned memory, which stays until the lane was synchronised after the next `launched`."""
        if self._staged_bytes + data.nbytes > STAGED_BYTES:
            self.synchronize()
        size = block_bytes(data.nbytes)
        block = self._take_pinned(size, mapped)
        self._bound.append(((size, mapped), block))
        block.view[: data.nbytes] = data
        return block

    def launched(self) -> None:
        """What was staged is now read by the lane's work."""
        while self._bound:
            self._give(self._bound.pop())

    def download(self, address: int, size: int) -> Array:
        """The bytes at an address once the lane's work is done, uint8 (size,): a copy."""
        kind = (block_bytes(size), False)
        block = self._take_pinned(*kind)
        try:
            self.cuda.download(block.address, address, size, self.stream)
            self.synchronize()
            self.traffic.downloads += 1
            self.traffic.download_bytes += size
            return block.view[:size].copy()
        finally:
            self._pinned.setdefault(kind, []).append(block)

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy within the device."""
        self.cuda.copy(destination, source, size, self.stream)
        self.traffic.device_copies += 1

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int) -> None:
        """Copy rows within the device; `to` and `source` are (address, bytes a row)."""
        self.cuda.copy_rows(to, source, width, rows, self.stream)
        self.traffic.device_copies += 1

    def synchronize(self) -> None:
        """Wait for everything that the lane was given; pinned memory is free again then."""
        self.cuda.synchronize(self.stream)
        for kind, block in self._staged:
            self._pinned.setdefault(kind, []).append(block)
        self._staged.clear()
        self._staged_bytes = 0

    def wait_for(self, other: Lane) -> None:
        """Do what comes next only after what `other` was given so far."""
        if other is self:
            return
        with other.lock:
            self.cuda.record(other._event, other.stream)
            self.cuda.wait(self.stream, other._event)

    def trim(self) -> None:
        """Wait, and give back the memory that no tensor uses."""
        self.synchronize()
        self._drain()
        for address in self._free.clear():
            self.cuda.free(address, self.stream)
        self.cuda.synchronize(self.stream)

    def destroy(self) -> None:
        """Release everything; the lane was trimmed, and no tensor uses its memory any more."""
        with ExitStack() as stack:  # also when one of them fails
            stack.callback(self.cuda.destroy_stream, self.stream)
            stack.callback(self.cuda.destroy_event, self._event)
            for block in self._all_pinned:
                stack.callback(self.cuda.host_free, block)

    def _give(self, entry: tuple[tuple[int, bool], HostBlock]) -> None:
        """Staged memory is free again when the lane has done what it was given so far."""
        self._staged.append(entry)
        self._staged_bytes += entry[0][0]

    def _malloc(self, size: int) -> int:
        """New memory; where there is none left, what the lane keeps is given back first."""
        try:
            return self.cuda.malloc(size, self.stream)
        except EdgeVQAError:
            if not self._free.size_bytes:
                raise
            self.trim()
            return self.cuda.malloc(size, self.stream)

    def _drain(self) -> None:
        """Take in the blocks that tensors left, after those who still read them."""
        while self.returned:
            block = self.returned.popleft()
            for reader in block.readers:
                self.wait_for(reader)
            for address in self._free.put(block.address, block.size):
                self.cuda.free(address, self.stream)

    def _take_pinned(self, size: int, mapped: bool) -> HostBlock:
        free = self._pinned.get((size, mapped))
        if free:
            return free.pop()
        block = self.cuda.host_alloc(size, mapped=mapped)
        self._all_pinned.append(block)
        return block


class Device:
    """One GPU of this process. It is released when no session and no tensor needs it any more."""

    def __init__(self, bindings: Any, index: int) -> None:
        self.bindings = bindings
        self.cuda = Cuda(bindings, index)
        self.traffic = Traffic()
        self.sessions = 0
        self._lent: deque[None] = deque()  # one a block that a tensor has: counted without a lock, for the collector
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._lock = threading.Lock()

    @contextmanager
    def lane(self) -> Generator[Lane, None, None]:
        """A lane for the calling thread alone; one after another, calls get the same one."""
        self.cuda.use()
        with self._lock:
            lane = self._idle.pop() if self._idle else None
        if lane is None:
            lane = Lane(self.cuda, self.traffic)
            with self._lock:
                self._lanes.append(lane)
        try:
            yield lane
        finally:
            with self._lock:
                self._idle.append(lane)

    def lend(self) -> None:
        """A block went to a tensor."""
        self._lent.append(None)

    def take_back(self, block: Block) -> None:
        """A tensor is gone. Called from the garbage collector too, at any time."""
        block.lane.returned.append(block)
        self._lent.pop()
        if self.unused:
            _release(self)

    @property
    def unused(self) -> bool:
        """Whether no session and no tensor needs it."""
        return self.sessions == 0 and not self._lent

    def destroy(self) -> None:
        """Release every lane."""
        self.cuda.use()
        with ExitStack() as stack:  # runs them backwards, all of them also when some fail
            for lane in self._lanes:
                stack.callback(lane.destroy)
            for lane in self._lanes:
                stack.callback(lane.trim)
        self._lanes.clear()
        self._idle.clear()


_DEVICES: dict[tuple[int, int], Device] = {}
_LOCK = threading.RLock()


def acquire_device(bindings: Any, index: int) -> Device:
    """The process's device of that number, for one more session."""
    with _LOCK:
        key = (id(bindings), index)
        if key not in _DEVICES:
            _DEVICES[key] = Device(bindings, index)
        _DEVICES[key].sessions += 1
        return _DEVICES[key]


def release_device(device: Device) -> None:
    """A session is closed; with the last one, and the last tensor, the GPU's memory is released."""
    with _LOCK:
        device.sessions -= 1
    if device.unused:
        _release(device)


def _release(device: Device) -> None:
    with _LOCK:
        key = (id(device.bindings), device.cuda.index)
        if device.unused and _DEVICES.get(key) is device:
            del _DEVICES[key]
            device.destroy()
