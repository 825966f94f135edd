"""CUDA as the sessions need it: a thin layer over cuda-python whose errors say what failed and what to do."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import msgspec
import numpy as np

from edgevqa.runtime.errors import EdgeVQAError, MissingExtraError, UnavailableError
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.sessions.base import Array

_LAYOUTS = ("cuda.bindings.runtime", "cuda.cudart")  # since 12.6.1, and before
_ABSENT = {
    "cudaErrorNoDevice": "This machine has no NVIDIA GPU that CUDA can see.",
    "cudaErrorInsufficientDriver": "There is no NVIDIA driver, or one that is older than cuda-python needs.",
    "cudaErrorInvalidDevice": "There is no GPU of that number.",
    "cudaErrorStubLibrary": "The driver that was found is a stub without a GPU behind it.",
    "cudaErrorSystemDriverMismatch": "The driver was upgraded since the system started.",
    "cudaErrorSystemNotReady": "The driver is not ready.",
    "cudaErrorDevicesUnavailable": "Every GPU is taken by another process, or may not be used.",
    "cudaErrorCompatNotSupportedOnDevice": "The forward compatibility package does not support this GPU.",
}
_ADVICE = {
    "cudaErrorMemoryAllocation": "Ask fewer questions at once, close other programs, or use a smaller precision.",
    "cudaErrorIllegalAddress": "The process can no longer use the GPU. Start it again, and report this.",
    "cudaErrorLaunchFailure": "The process can no longer use the GPU. Start it again, and report this.",
    "cudaErrorECCUncorrectable": "The GPU's memory failed. Start the machine again, and check the GPU.",
    "cudaErrorLaunchTimeout": "The GPU also draws a screen that was blocked too long. Ask fewer questions at once.",
}


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. `integrated` shares its memory with the CPU; `pools` can allocate in a stream's order."""

    index: int
    name: str
    compute_capability: str
    integrated: bool
    pools: bool


class HostBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Pinned host memory: `view` is its bytes as uint8; a mapped block also has an address for the GPU, else 0."""

    address: int
    device_address: int
    view: Array


def load_bindings(extra: str = "tensorrt") -> Any:
    """The module of CUDA's runtime functions. Raises `MissingExtraError` where cuda-python is not installed."""
    for name in _LAYOUTS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            raise UnavailableError(f"cuda-python cannot be loaded: {error}. {_absent_advice()}") from error
    raise MissingExtraError("cuda-python", extra, "Running TensorRT engines")


def _absent_advice() -> str:
    """What to do without a GPU; a backend for the CPU is named by what installs it where there is none."""
    for_cpu = [row for row in BACKENDS.values() if not row.gpu]
    here = next((row for row in for_cpu if row.installed()), None)
    first = "" if here else f"pip install 'edgevqa[{for_cpu[0].extra}]', then "
    return (
        "Look with nvidia-smi, and see that cuda-python is of the driver's CUDA (12 or 13); "
        f"or run on the CPU: {first}--backend {(here or for_cpu[0]).name}."
    )


class Cuda:
    """CUDA's functions for one GPU. Addresses and handles are numbers or opaque; who makes something releases it.

    Raises `UnavailableError` where there is no driver or no such GPU, and `EdgeVQAError` with the driver's name and text
    for everything else that fails.
    """

    def __init__(self, bindings: Any, index: int = 0) -> None:
        self._cuda = bindings
        self.index = index
        self.use()
        self.info = self._info()

    def use(self) -> None:
        """Make the GPU that of the calling thread."""
        self._call("choosing a GPU", self._cuda.cudaSetDevice(self.index))

    def malloc(self, size: int, stream: Any) -> int:
        """Device memory, uninitialised: in the stream's order where the GPU can, else at once."""
        doing = f"allocating {size / 1e6:.1f} MB on the GPU"
        if self.info.pools:
            return int(self._call(doing, self._cuda.cudaMallocAsync(size, stream)))
        return int(self._call(doing, self._cuda.cudaMalloc(size)))

    def free(self, address: int, stream: Any) -> None:
        """Release device memory after what the stream has been given so far."""
        if self.info.pools:
            self._call("freeing GPU memory", self._cuda.cudaFreeAsync(address, stream))
        else:
            self._call("freeing GPU memory", self._cuda.cudaFree(address))  # waits for the GPU by itself

    def host_alloc(self, size: int, *, mapped: bool = False) -> HostBlock:
        """Pinned host memory; `mapped` gives the GPU an address for it too."""
        flags = int(self._cuda.cudaHostAllocMapped) if mapped else int(self._cuda.cudaHostAllocDefault)
        doing = f"allocating {size / 1e6:.1f} MB of pinned memory"
        address = int(self._call(doing, self._cuda.cudaHostAlloc(size, flags)))
        device_address = 0
        if mapped:
            device_address = int(self._call("mapping memory", self._cuda.cudaHostGetDevicePointer(address, 0)))
        memory: Any = (ctypes.c_uint8 * size).from_address(address)
        view: Array = np.frombuffer(memory, dtype=np.uint8)
        return HostBlock(address=address, device_address=device_address, view=view)

    def host_free(self, block: HostBlock) -> None:
        """Release pinned memory, which nothing may use any more."""
        self._call("freeing pinned memory", self._cuda.cudaFreeHost(block.address))

    def upload(self, destination: int, source: int, size: int, stream: Any) -> None:
        """Copy pinned host memory to the device, in the stream's order."""
        self._copy("cudaMemcpyHostToDevice", destination, source, size, stream)

    def download(self, destination: int, source: int, size: int, stream: Any) -> None:
        """Copy device memory to pinned host memory; it is there when the stream was synchronised."""
        self._copy("cudaMemcpyDeviceToHost", destination, source, size, stream)

    def copy(self, destination: int, source: int, size: int, stream: Any) -> None:
        """Copy device memory within the device."""
        self._copy("cudaMemcpyDeviceToDevice", destination, source, size, stream)

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any) -> None:
        """Copy `rows` rows of `width` bytes within the device; `to` and `source` are (address, bytes a row)."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        done = self._cuda.cudaMemcpy2DAsync(to[0], to[1], source[0], source[1], width, rows, kind, stream)
        self._call("copying rows on the GPU", done)

    def fill(self, address: int, value: int, size: int, stream: Any) -> None:
        """Set device memory to one byte."""
        self._call("filling GPU memory", self._cuda.cudaMemsetAsync(address, value, size, stream))

    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        flag = self._cuda.cudaStreamNonBlocking
        return self._call("creating a stream", self._cuda.cudaStreamCreateWithFlags(flag))

    def destroy_stream(self, stream: Any) -> None:
        self._call("destroying a stream", self._cuda.cudaStreamDestroy(stream))

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream has done everything; what failed on the GPU is told here."""
        self._call("waiting for the GPU", self._cuda.cudaStreamSynchronize(stream))

    def create_event(self) -> Any:
        """A mark in a stream's order."""
        flag = self._cuda.cudaEventDisableTiming
        return self._call("creating an event", self._cuda.cudaEventCreateWithFlags(flag))

    def destroy_event(self, event: Any) -> None:
        self._call("destroying an event", self._cuda.cudaEventDestroy(event))

    def record(self, event: Any, stream: Any) -> None:
        """Put the mark behind what the stream was given so far."""
        self._call("recording an event", self._cuda.cudaEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream wait for a mark, without the host."""
        self._call("waiting for an event", self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def begin_capture(self, stream: Any) -> None:
        """From now on the stream records what it is given; other threads are not concerned."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("capturing a CUDA graph", self._cuda.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Any) -> Any:
        """What was recorded, ready to launch. Raises `EdgeVQAError` where it cannot be captured."""
        graph = self._call("capturing a CUDA graph", self._cuda.cudaStreamEndCapture(stream))
        try:
            return self._call("preparing a CUDA graph", self._cuda.cudaGraphInstantiate(graph, 0))
        finally:
            self._call("destroying a CUDA graph", self._cuda.cudaGraphDestroy(graph))

    def abandon_capture(self, stream: Any) -> None:
        """End a capture whose launch was refused; what was recorded is lost."""
        ended: tuple[Any, ...] = self._cuda.cudaStreamEndCapture(stream)
        if int(ended[0]) == 0 and len(ended) > 1:
            self._cuda.cudaGraphDestroy(ended[1])
        self.forget_error()

    def forget_error(self) -> None:
        """Let no later call be told of what failed."""
        self._cuda.cudaGetLastError()

    def launch(self, graph: Any, stream: Any) -> None:
        """Run what was captured."""
        self._call("launching a CUDA graph", self._cuda.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        self._call("destroying a CUDA graph", self._cuda.cudaGraphExecDestroy(graph))

    def _info(self) -> DeviceInfo:
        properties = self._call("asking the GPU", self._cuda.cudaGetDeviceProperties(self.index))
        attribute = self._cuda.cudaDeviceAttr.cudaDevAttrMemoryPoolsSupported
        pools = self._call("asking the GPU", self._cuda.cudaDeviceGetAttribute(attribute, self.index))
        name = properties.name
        return DeviceInfo(
            index=self.index,
            name=name.decode("utf-8", "replace").rstrip("\0") if isinstance(name, bytes) else str(name),
            compute_capability=f"{properties.major}.{properties.minor}",
            integrated=bool(properties.integrated),
            pools=bool(pools),
        )

    def _copy(self, kind: str, destination: int, source: int, size: int, stream: Any) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        done = self._cuda.cudaMemcpyAsync(destination, source, size, direction, stream)
        self._call("copying to or from the GPU", done)

    def _call(self, doing: str, result: tuple[Any, ...]) -> Any:
        """The value of a call that went well, None where it has none. Raises what the class says."""
        if int(result[0]) == 0:
            return result[1] if len(result) > 1 else None
        name = _text(self._cuda.cudaGetErrorName(result[0]))
        said = _text(self._cuda.cudaGetErrorString(result[0]))
        if name in _ABSENT:
            raise UnavailableError(f"{_ABSENT[name]} CUDA said {name} ({said}) when {doing}. {_absent_advice()}")
        advice = _ADVICE.get(name, "Report this, with what 'edgevqa doctor' prints.")
        raise EdgeVQAError(f"CUDA failed {doing}: {name} ({said}). {advice}")


def _text(result: tuple[Any, ...]) -> str:
    value = result[1] if len(result) > 1 else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
