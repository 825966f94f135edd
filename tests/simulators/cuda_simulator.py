"""A strict simulator of CUDA's runtime functions, for tests alone: host memory plays the GPU, and every misuse raises.

It stands in for cuda-python's module, so that our own layer above it is tested too. Work is really deferred: it is done
when a stream is synchronised, so that whoever reads too early reads old bytes. Device addresses are in a space of their
own, never reused, and memory knows which of its bytes were written. It proves nothing about a GPU's speed or numerics.
"""

from __future__ import annotations

import threading
from collections import deque
from types import ModuleType
from typing import Any

import numpy as np

from tests.simulators.cuda_parts import (
    ALIGNMENT,
    FIRST_ADDRESS,
    Event,
    Handle,
    Memory,
    Op,
    Properties,
    Stream,
    cudaDeviceAttr,
    cudaError_t,
    cudaMemcpyKind,
    cudaStreamCaptureMode,
)
from tests.simulators.simulated_memory import DeviceMemory
from tests.simulators.writes import SimulatorError


class CudaSimulator(DeviceMemory, ModuleType):
    """The functions of `cuda.bindings.runtime` that edgevqa calls, with their names and arguments."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr
    cudaHostAllocDefault = 0
    cudaHostAllocMapped = 2
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self, *, pools: bool = True, integrated: bool = False, capability: str = "8.6") -> None:
        ModuleType.__init__(self, "cuda_simulator")
        DeviceMemory.__init__(self)
        self.lock = threading.RLock()
        self.pools = pools
        self.properties = Properties()
        self.properties.integrated = int(integrated)
        self.properties.major, self.properties.minor = (int(part) for part in capability.split("."))
        self.next_address = FIRST_ADDRESS
        self.handles: dict[int, Handle] = {}
        self.failures: dict[str, cudaError_t] = {}
        self.calls: dict[str, int] = {}
        self.least_bytes_free: int | None = None
        self.current = threading.local()

    def fail_next(self, function: str, error: str) -> None:
        """Let the next call of a function return an error."""
        self.failures[function] = cudaError_t[error]

    def leaks(self) -> list[str]:
        """Everything that was made and not released."""
        memory = [f"{m.kind} memory of {len(m.data)} bytes" for m in (*self.device.values(), *self.host.values())]
        return memory + [handle.kind for handle in self.handles.values()]

    def bytes_in_use(self) -> int:
        return sum(len(memory.data) for memory in list(self.device.values()) if memory.kind == "device")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._enter("cudaMalloc", uncaptured=True) or self._allocate(size, None)

    def cudaMallocAsync(self, size: int, hStream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaMallocAsync", uncaptured=True)
        if not self.pools:
            raise SimulatorError("this GPU has no memory pools")
        return failed or self._allocate(size, self._stream(hStream))

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        failed = self._enter("cudaFree", uncaptured=True)
        memory = self._freeable(devPtr)
        for stream in self._streams():
            self.drain(stream)
        self._forget(memory)
        return failed or (cudaError_t.cudaSuccess,)

    def cudaFreeAsync(self, devPtr: int, hStream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaFreeAsync", uncaptured=True)
        memory = self._freeable(devPtr)
        memory.freeing = True
        self._stream(hStream).queue.append(Op("free", [], lambda: self._forget(memory)))
        return failed or (cudaError_t.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        failed = self._enter("cudaHostAlloc", uncaptured=True)
        if failed:
            return failed
        if size < 1:
            raise SimulatorError("pinned memory of no bytes")
        data = np.full(size, 0xCD, dtype=np.uint8)
        address = int(data.ctypes.data)
        self.host[address] = Memory(address, data, "mapped" if flags == self.cudaHostAllocMapped else "pinned", None)
        return (cudaError_t.cudaSuccess, address)

    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> tuple[Any, ...]:
        failed = self._enter("cudaHostGetDevicePointer")
        memory = self.host.get(int(pHost))
        if memory is None or memory.kind != "mapped":
            raise SimulatorError(f"host address {pHost:#x} is not mapped")
        alias = Memory(self._new_address(len(memory.data)), memory.data, "alias", None)
        alias.written[:] = True  # the host writes it behind CUDA's back
        alias.writes = memory.writes
        self.device[alias.address] = alias
        return failed or (cudaError_t.cudaSuccess, alias.address)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        failed = self._enter("cudaFreeHost", uncaptured=True)
        memory = self.host.pop(int(ptr), None)
        if memory is None:
            raise SimulatorError(f"{ptr:#x} is no pinned memory, or was freed before")
        aliases = [each for each in list(self.device.values()) if each.data is memory.data]
        places = {memory.address, *(each.address for each in aliases)}
        for stream in self._streams():
            if any(address in places for op in stream.queue for address, _ in op.places):
                raise SimulatorError("pinned memory was freed while a stream still uses it")
        for alias in aliases:
            del self.device[alias.address]
        return failed or (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: Any) -> tuple[Any, ...]:
        return self._copy((dst, count), (src, count), (count, 1), kind, stream, whole=True)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: Any
    ) -> tuple[Any, ...]:
        return self._copy((dst, dpitch), (src, spitch), (width, height), kind, stream, whole=False)

    def _copy(
        self,
        to: tuple[int, int],
        source: tuple[int, int],
        sizes: tuple[int, int],
        kind: int,
        stream: Any,
        *,
        whole: bool,
    ) -> tuple[Any, ...]:
        """Rows of bytes; `to` and `source` are (address, pitch). A `whole` copy is one tensor, or all of one."""
        failed = self._enter("cudaMemcpyAsync")
        if failed:
            return failed
        ((dst, dpitch), (src, spitch)), (width, height) = ((int(a), int(b)) for a, b in (to, source)), sizes
        if width < 1 or height < 1 or dpitch < width or spitch < width:
            raise SimulatorError(f"a copy of {height} rows of {width} bytes with pitches {spitch} and {dpitch}")
        to_host, from_host = kind == 2, kind == 1
        to_size, from_size = (height - 1) * dpitch + width, (height - 1) * spitch + width
        self._usable(dst, to_size, on_host=to_host)
        self._usable(src, from_size, on_host=from_host)

        def run() -> None:
            origin, at = self.place(src, from_size, on_host=from_host)
            memory, into = self.place(dst, to_size, on_host=to_host)
            if whole and not from_host:
                origin.writes.check_extent(at, at + from_size, f"a copy from {src:#x}")
            dtype = origin.writes.dtype_of(at, at + from_size)
            for row in range(height):
                part = slice(at + row * spitch, at + row * spitch + width)
                if not from_host and not origin.written[part].all():
                    raise SimulatorError(f"a copy reads bytes at {src:#x} that nobody wrote")
                target = slice(into + row * dpitch, into + row * dpitch + width)
                memory.data[target] = origin.data[part]
                memory.written[target] = True
                memory.writes.add(target.start, target.stop, None if to_host else dtype, whole=whole and not to_host)

        self.give(stream, Op("copy", [(dst, to_size), (src, from_size)], run))
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaMemsetAsync")
        self._usable(int(devPtr), count, on_host=False)

        def run() -> None:
            memory, at = self.place(int(devPtr), count)
            memory.data[at : at + count] = value
            memory.written[at : at + count] = True
            memory.writes.add(at, at + count)

        self.give(stream, Op("fill", [(int(devPtr), count)], run))
        return failed or (cudaError_t.cudaSuccess,)

    # streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._enter("cudaStreamCreateWithFlags") or (cudaError_t.cudaSuccess, self._keep(Stream()))

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaStreamDestroy", uncaptured=True)
        made = self._stream(stream)
        self.drain(made)
        self._release(made, "stream")
        return failed or (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaStreamSynchronize", uncaptured=True)
        if failed:
            return failed
        made = self._stream(stream)
        if made.capturing is not None:
            raise SimulatorError("a stream is synchronised while it captures")
        self.drain(made)
        return (cudaError_t.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._enter("cudaEventCreateWithFlags") or (cudaError_t.cudaSuccess, self._keep(Event()))

    def cudaEventDestroy(self, event: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaEventDestroy")
        self._release(event, "event")
        return failed or (cudaError_t.cudaSuccess,)

    def cudaEventRecord(self, event: Any, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaEventRecord")
        made, mark = self._stream(stream), Op("mark", [], lambda: None)
        if made.capturing is not None:
            raise SimulatorError("an event is recorded into a capture")
        self._live(event, "event").mark = (made, mark)
        made.queue.append(mark)
        return failed or (cudaError_t.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[Any, ...]:
        failed = self._enter("cudaStreamWaitEvent")
        mark = self._live(event, "event").mark
        if mark is not None:
            self.give(stream, Op("wait", [], lambda: self.drain(mark[0], until=mark[1])))
        return failed or (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> tuple[Any, ...]:
        failed = self._enter("cudaStreamBeginCapture", uncaptured=True)
        made = self._stream(stream)
        if made.capturing is not None or mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise SimulatorError("a capture begins twice, or would let other threads disturb it")
        made.capturing, made.capturer = [], threading.get_ident()
        return failed or (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaStreamEndCapture")
        made = self._stream(stream)
        if made.capturing is None:
            raise SimulatorError("a capture ends that never began")
        graph: Any = Handle("graph")
        graph.ops, made.capturing, made.capturer = made.capturing, None, None
        return (*failed, None) if failed else (cudaError_t.cudaSuccess, self._keep(graph))

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        failed = self._enter("cudaGraphInstantiate")
        made: Any = Handle("executable graph")
        made.ops = list(self._live(graph, "graph").ops)
        if not made.ops:
            raise SimulatorError("a graph without any work")
        return failed or (cudaError_t.cudaSuccess, self._keep(made))

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self._release(graph, "graph")
        return self._enter("cudaGraphDestroy") or (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        self._release(graphExec, "executable graph")
        return self._enter("cudaGraphExecDestroy") or (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any, ...]:
        failed = self._enter("cudaGraphLaunch")
        for op in self._live(graphExec, "executable graph").ops:
            for address, size in op.places:
                self._usable(address, size, on_host=False)
            check = getattr(op, "before_replay", None)
            if check is not None:
                check()
            self.give(stream, op)
        return failed or (cudaError_t.cudaSuccess,)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        failed = self._enter("cudaSetDevice", chosen=False)
        if failed or device != 0:
            return failed or (cudaError_t.cudaErrorInvalidDevice,)
        self.current.device = device
        return (cudaError_t.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self._enter("cudaGetDeviceProperties") or (cudaError_t.cudaSuccess, self.properties)

    def cudaDeviceGetAttribute(self, attr: int, device: int) -> tuple[Any, ...]:
        return self._enter("cudaDeviceGetAttribute") or (cudaError_t.cudaSuccess, int(self.pools))

    def cudaGetErrorName(self, error: Any) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, error.name.encode())

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, f"the text of {error.name}".encode())

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess,)

    # how it works

    def give(self, stream: Any, op: Op) -> None:
        """Put work into a stream, or into what it captures."""
        made = self._stream(stream)
        if made.capturing is None:
            made.queue.append(op)
        elif made.capturer == threading.get_ident():
            made.capturing.append(op)
        else:
            raise SimulatorError(f"another thread's {op.what} gets into a capture")

    def drain(self, stream: Stream, until: Op | None = None) -> None:
        """Do a stream's work, all or up to a mark."""
        with self.lock:
            if until is not None and until not in stream.queue:
                return
            while stream.queue:
                op = stream.queue.popleft()
                try:
                    op.run()
                except BaseException:  # what comes after an error is not done; memory still comes and goes
                    stream.queue = deque(each for each in stream.queue if each.what in ("allocate", "free"))
                    raise
                if op is until:
                    return

    def _enter(self, function: str, *, uncaptured: bool = False, chosen: bool = True) -> tuple[Any, ...] | None:
        """Count a call, refuse it in a capture where it is forbidden, and fail where a test asked for it."""
        self.calls[function] = self.calls.get(function, 0) + 1
        if chosen and getattr(self.current, "device", None) is None:
            raise SimulatorError(f"{function} on a thread that chose no device")
        if uncaptured and any(s.capturer == threading.get_ident() for s in self._streams()):
            raise SimulatorError(f"{function} while this thread captures")
        error = self.failures.pop(function, None)
        return None if error is None else (error,)

    def _allocate(self, size: int, stream: Stream | None) -> tuple[Any, ...]:
        if size < 1:
            raise SimulatorError("device memory of no bytes")
        if self.least_bytes_free is not None and self.bytes_in_use() + size > self.least_bytes_free:
            return (cudaError_t.cudaErrorMemoryAllocation,)
        memory = Memory(self._new_address(size), np.full(size, 0xCD, dtype=np.uint8), "device", stream)
        self.device[memory.address] = memory
        if stream is not None:
            stream.queue.append(Op("allocate", [], lambda: setattr(memory, "there", True)))
        return (cudaError_t.cudaSuccess, memory.address)

    def _new_address(self, size: int) -> int:
        with self.lock:
            address = self.next_address
            self.next_address += -(-size // ALIGNMENT) * ALIGNMENT + 4096
            return address

    def _freeable(self, address: int) -> Memory:
        memory = self.device.get(int(address))
        if memory is None or memory.kind != "device" or memory.freeing:
            raise SimulatorError(f"{address:#x} is freed twice, or is no allocation")
        return memory

    def _forget(self, memory: Memory) -> None:
        memory.data[:] = 0xDD
        self.device.pop(memory.address, None)

    def _streams(self) -> list[Stream]:
        return [handle for handle in list(self.handles.values()) if isinstance(handle, Stream)]

    def _stream(self, stream: Any) -> Stream:
        made = self.handles.get(int(stream))
        if not isinstance(made, Stream):
            raise SimulatorError("a stream is used that does not exist (or the default one, which synchronises)")
        return made

    def _keep(self, handle: Handle) -> Handle:
        self.handles[handle.number] = handle
        return handle

    def _live(self, handle: Any, kind: str) -> Any:
        made = self.handles.get(int(handle))
        if made is None or made.kind != kind:
            raise SimulatorError(f"a {kind} is used that was destroyed, or is none")
        return made

    def _release(self, handle: Any, kind: str) -> None:
        self._live(handle, kind)
        del self.handles[int(handle)]
