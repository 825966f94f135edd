"""The decoder's past in the GPU's memory: ONNX Runtime allocates it, CUDA's runtime copies into it."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.checks import check_new_slots
from edgevqa.runtime.sessions.ort_values import OrtTensor

_BY_ADDRESS = 4  # cudaMemcpyDefault: the addresses tell the direction


class Copy(Protocol):
    """Copies within one memory, by address."""

    def rows(self, to: tuple[int, int], source: tuple[int, int], width: int, count: int) -> None:
        """Copy `count` rows of `width` bytes; `to` and `source` are an address and the bytes from row to row."""
        ...

    def finish(self) -> None:
        """Wait until all is copied."""
        ...


class CudaCopy:
    """Copies by the CUDA runtime that ONNX Runtime has loaded already."""

    def __init__(self, runtime: Any) -> None:
        self._copy = runtime.cudaMemcpy2D
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, *[ctypes.c_size_t] * 3, ctypes.c_int]
        self._wait = runtime.cudaStreamSynchronize
        self._wait.argtypes = [ctypes.c_void_p]

    @classmethod
    def find(cls, ort: Any) -> CudaCopy | None:
        """The CUDA runtime of ONNX Runtime's CUDA version, or None."""
        try:
            about: Any = importlib.import_module(f"{ort.__name__}.capi.build_and_package_info")
            return cls(ctypes.CDLL(f"libcudart.so.{str(about.cuda_version).partition('.')[0]}"))
        except (ImportError, AttributeError, OSError):
            return None

    def rows(self, to: tuple[int, int], source: tuple[int, int], width: int, count: int) -> None:
        code = self._copy(to[0], to[1], source[0], source[1], width, count, _BY_ADDRESS)
        if code:
            raise EdgeVQAError(f"CUDA could not copy the decoder's keys and values: error {code}.")

    def finish(self) -> None:
        code = self._wait(None)  # ONNX Runtime's streams do not wait for this one
        if code:
            raise EdgeVQAError(f"CUDA could not copy the decoder's keys and values: error {code}.")


class DeviceKeyValueCache:
    """Preallocated device buffers, written in place. `zeros` makes another like one of them."""

    def __init__(
        self,
        past: Mapping[str, OrtTensor],
        capacity: int,
        copy: Copy,
        zeros: Callable[[tuple[int, ...], str], OrtTensor],
    ) -> None:
        """`past` are `past_key.N` and `past_value.N` (batch, heads, capacity, head), which become the cache's."""
        self.length = 0
        self.capacity = capacity
        self._past = dict(past)
        self._copy = copy
        self._zeros = zeros

    def inputs(self) -> Mapping[str, Tensor | Array]:
        return self._past

    def append(self, outputs: Mapping[str, Tensor | Array]) -> None:
        """Write `new_key.N` and `new_value.N` (batch, heads, slots, head) from slot `length` on, as far as there is room.

        What lies on the device does not pass the host.
        """
        news = {name: _reachable(outputs[name.replace("past_", "new_", 1)], past) for name, past in self._past.items()}
        slots = check_new_slots(
            {name: (past.dtype, past.shape) for name, past in self._past.items()},
            {name: (str(new.dtype), new.shape) for name, new in news.items()},
        )
        kept = min(slots, self.capacity - self.length)  # nobody attends to the last token's keys
        if kept < 1:
            return
        for name, past in self._past.items():
            batch, heads, capacity, head = past.shape
            slot = head * np.dtype(past.dtype).itemsize
            to = (past.value.data_ptr() + self.length * slot, capacity * slot)
            self._copy.rows(to, (_address(news[name]), slots * slot), kept * slot, batch * heads)
        self._copy.finish()
        self.length += kept

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Let row i continue what row `rows[i]` began."""
        if np.array_equal(rows, np.arange(len(rows))):
            return
        gathered: dict[str, OrtTensor] = {}
        for name, past in self._past.items():
            gathered[name] = fresh = self._zeros(past.shape, past.dtype)
            size = int(np.prod(past.shape[1:])) * np.dtype(past.dtype).itemsize
            for row, origin in enumerate(rows.tolist()):
                to, source = fresh.value.data_ptr() + row * size, past.value.data_ptr() + origin * size
                self._copy.rows((to, size), (source, size), size, 1)
        self._copy.finish()
        self._past = gathered


def _reachable(value: Tensor | Array, past: OrtTensor) -> OrtTensor | Array:
    """ONNX Runtime's tensors on the cache's device or the host as they are; everything else as a contiguous array."""
    if isinstance(value, OrtTensor) and value.device in ("cpu", past.device):
        return value
    return np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())


def _address(value: OrtTensor | Array) -> int:
    return int(value.value.data_ptr() if isinstance(value, OrtTensor) else value.ctypes.data)
