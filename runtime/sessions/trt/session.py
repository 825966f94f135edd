"""A session of the TensorRT backends: checked inputs, the profile that fits, and tensors that stay on the GPU."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from types import TracebackType

import numpy as np

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.checks import check_inputs
from edgevqa.runtime.sessions.trt.cache import CacheBlocks, DeviceKeyValueCache
from edgevqa.runtime.sessions.trt.captured import Value
from edgevqa.runtime.sessions.trt.device import Device, Lane, Traffic, release_device
from edgevqa.runtime.sessions.trt.dtypes import engine_dtype
from edgevqa.runtime.sessions.trt.engine import Engine
from edgevqa.runtime.sessions.trt.options import EngineOptions
from edgevqa.runtime.sessions.trt.profiles import EngineInputs, choose_profile, fixed_capacity
from edgevqa.runtime.sessions.trt.tensors import DeviceTensor
from edgevqa.runtime.sessions.trt.worker import Worker


class EngineSession:
    """One graph's engine. `run` may be called from several threads; `close` may not be called during a run.

    Outputs are `DeviceTensor`s: they belong to the caller, and stay valid after the next `run` and after `close`.
    """

    def __init__(
        self, engine: Engine, takes: EngineInputs, outputs: list[TensorSpec], key: str, options: EngineOptions
    ) -> None:
        """`takes` are the engine's inputs with the manifest's axes; `key` names its set. It owns engine and device."""
        self.name = takes.graph
        self.key = key
        self.inputs: list[TensorSpec] = fixed_capacity(takes.specs, takes.profiles)
        self.outputs: list[TensorSpec] = outputs
        self._dtypes = {spec.name: spec.dtype for spec in self.inputs}
        self._takes = takes
        self._loaded = _Loaded(engine, self.inputs, outputs, options)
        self._finalizer = weakref.finalize(self, self._loaded.close)

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run the graph. Arrays are copied during the call; tensors of a TensorRT session are read where they are.

        Raises `InputError` naming the graph and what it expects for wrong names, dtypes or shapes, and for shapes that
        the engine was not built for, and `EdgeVQAError` for what TensorRT or the driver refuse. What fails on the GPU
        is told when a result is read.
        """
        loaded = self._open()
        values = {name: self._native(name, value) for name, value in inputs.items()}
        check_inputs(self.name, self.inputs, {name: (self._dtype(name, v), v.shape) for name, v in values.items()})
        ordered = {spec.name: values[spec.name] for spec in self.inputs}
        profile = choose_profile(self._takes, {name: value.shape for name, value in ordered.items()})
        with loaded.device.lane() as lane:
            return dict(loaded.worker(lane).run(ordered, profile))

    def make_cache(self, batch: int, capacity: int) -> DeviceKeyValueCache:
        """A cache on the GPU for the decoder's past, empty (zeros). It keeps its memory after `close`."""
        return DeviceKeyValueCache(self._open().caches, self.inputs, batch, capacity)

    @property
    def traffic(self) -> Traffic:
        """What was copied and launched on the GPU, by all of the process's sessions."""
        return self._open().device.traffic

    def close(self) -> None:
        """Free the engine and its contexts; closing twice is harmless."""
        self._finalizer()

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Loaded:
        if not self._finalizer.alive:
            raise EdgeVQAError(f"Graph '{self.name}' was closed; load the pipeline again.")
        return self._loaded

    def _native(self, name: str, value: Tensor | Array) -> Value:
        """Our own tensors as they are; everything else as a contiguous host array in the machine's byte order."""
        if isinstance(value, DeviceTensor) and value.buffer.device is self._loaded.device:
            return value
        array = value if isinstance(value, np.ndarray) else value.numpy()
        return np.asarray(array, dtype=np.dtype(array.dtype.str.replace(">", "=")), order="C")

    def _dtype(self, name: str, value: Value) -> str:
        if isinstance(value, DeviceTensor):
            return value.dtype
        return engine_dtype(value, self._dtypes.get(name, ""))


class _Loaded:
    """What a session releases: it lives until the session is closed or forgotten."""

    def __init__(
        self, engine: Engine, inputs: list[TensorSpec], outputs: list[TensorSpec], options: EngineOptions
    ) -> None:
        self.device: Device = engine.device
        self.caches = CacheBlocks(engine.device)
        self._engine = engine
        self._inputs = inputs
        self._outputs = outputs
        self._options = options
        self._workers: dict[Lane, Worker] = {}
        self._lock = threading.Lock()

    def worker(self, lane: Lane) -> Worker:
        """What runs the engine on a lane; the lane's holder calls."""
        with self._lock:
            if lane not in self._workers:
                self._workers[lane] = Worker(self._engine, lane, self._inputs, self._outputs, self._options)
            return self._workers[lane]

    def close(self) -> None:
        self.device.cuda.use()
        try:
            for worker in self._workers.values():
                worker.close()
        finally:
            self._workers.clear()
            self.caches.clear()
            self._engine.close()
            release_device(self.device)
