"""A strict simulator of TensorRT's runtime, for tests alone: ONNX Runtime computes, and every misuse raises.

Its engines are files with a plan's header, then JSON, then an ONNX graph (`engine_bytes`). It refuses what TensorRT
refuses, in its way (None, False and a line in the log), and raises `SimulatorError` where TensorRT would compute on
wrong or foreign bytes. It proves nothing about a GPU's speed or numerics.
"""

from __future__ import annotations

import importlib.machinery
import json
import struct
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from tests.simulators.context_simulator import ExecutionContext
from tests.simulators.cuda_simulator import CudaSimulator
from tests.simulators.tensorrt_types import (
    NUMPY,
    CudaGraphStrategy,
    DataType,
    ExecutionContextAllocationStrategy,
    ILogger,
    IOutputAllocator,
    Severity,
    TensorIOMode,
    TensorLocation,
)

Shape = tuple[int, ...]
TAGS = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
SCRATCH_BYTES = 1000


def engine_bytes(
    onnx: bytes,
    profiles: list[dict[str, Any]],
    *,
    flavour: str = "tensorrt",
    version: tuple[int, int, int, int] = (10, 3, 0, 30),
    **traits: Any,
) -> bytes:
    """A simulated engine. `profiles` are `{input: {"min": [...], "opt": ..., "max": ...}}`.

    Traits: `on_host` (inputs read on the host), `data_dependent` (outputs), `uncapturable`, `carries_runtime`, `shapeless`,
    `dla_core` (it was built for that one).
    """
    header = TAGS[flavour] + struct.pack("<I", 239) + bytes(16) + bytes(version) + bytes(36)
    text = json.dumps({"profiles": profiles, **traits}).encode()
    return header + struct.pack("<Q", len(text)) + text + onnx


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"compiled"):
            return False
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.content or b"compiled"


class RuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class Engine:
    """What `ICudaEngine` is to a session."""

    def __init__(self, cuda: CudaSimulator, runtime: Any, data: bytes, made: weakref.WeakSet[Any]) -> None:
        (length,) = struct.unpack("<Q", data[64:72])
        self.traits: dict[str, Any] = json.loads(data[72 : 72 + length])
        self.profiles: list[dict[str, Any]] = self.traits["profiles"]
        self.cuda, self.runtime, self.logger, self.made = cuda, runtime, runtime.logger, made
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(data[72 + length :], options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: DataType(node.type) for node in self.session.get_inputs()}
        self.outputs = {node.name: DataType(node.type) for node in self.session.get_outputs()}
        self.axes: dict[str, list[int | str]] = {node.name: node.shape for node in self.session.get_inputs()}
        self.known_shapes: dict[tuple[Shape, ...], dict[str, Shape]] = {}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return {**self.inputs, **self.outputs}[name]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.traits.get("on_host", []) else TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH_BYTES * (profile_index + 1)

    def create_execution_context(
        self, strategy: Any = ExecutionContextAllocationStrategy.STATIC
    ) -> ExecutionContext | None:
        needs = [] if self.runtime.parent is None else [self.runtime.parent]
        captures = None
        if isinstance(strategy, RuntimeConfig):
            needs.append(weakref.ref(strategy))
            captures, strategy = strategy.cuda_graph_strategy, strategy.strategy
        context = ExecutionContext(self, strategy, needs)
        context.captures = captures
        self.made.add(context)
        return context

    def shapes_of(self, inputs: dict[str, Shape]) -> dict[str, Shape]:
        """The outputs' shapes, found by a run on zeros."""
        key = tuple(inputs[name] for name in self.inputs)
        if key not in self.known_shapes:
            zeros = {name: np.zeros(inputs[name], NUMPY[kind]) for name, kind in self.inputs.items()}
            found: Any = self.session.run(list(self.outputs), zeros)
            self.known_shapes[key] = {name: value.shape for name, value in zip(self.outputs, found, strict=True)}
        return self.known_shapes[key]


class RtxEngine(Engine):
    """TensorRT-RTX's also has a runtime configuration."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


class TensorRTSimulator(ModuleType):
    """The parts of `tensorrt`, `tensorrt_lean` or `tensorrt_rtx` that edgevqa uses to run engines."""

    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    ILogger = ILogger
    IOutputAllocator = IOutputAllocator
    ICudaEngine = Engine
    IExecutionContext = ExecutionContext

    def __init__(self, name: str, cuda: CudaSimulator, version: tuple[int, int, int, int] = (10, 3, 0, 30)) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.flavour = "tensorrt-rtx" if name == "tensorrt_rtx" else "tensorrt"
        told = version if self.flavour == "tensorrt-rtx" else version[:3]  # JetPack's tells no build, its plans do
        self.__version__ = ".".join(map(str, told))
        self.version = version
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.dla_cores = 0
        simulator = self

        class Runtime:
            """`load_runtime` takes any file for the lean runtime of the engine's version."""

            def __init__(self, logger: ILogger) -> None:
                self.logger = logger
                self.engine_host_code_allowed = False
                self.loaded = False
                self.parent: weakref.ref[Any] | None = None
                self.DLA_core = 0 if simulator.dla_cores else -1

            @property
            def num_DLA_cores(self) -> int:
                return simulator.dla_cores

            def load_runtime(self, path: str) -> Any:
                other = Runtime(self.logger)
                other.loaded, other.parent = True, weakref.ref(self)
                return other

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                if serialized_engine[:4] != TAGS[simulator.flavour]:
                    self.logger.log(Severity.ERROR, "the magic tag does not match")
                    return None
                (length,) = struct.unpack("<Q", serialized_engine[64:72])
                traits = json.loads(serialized_engine[72 : 72 + length])
                carries = traits.get("carries_runtime", False)
                if traits.get("dla_core", self.DLA_core) != self.DLA_core:
                    self.logger.log(Severity.ERROR, f"the engine is for another DLA core than {self.DLA_core}")
                    return None
                if carries and not self.engine_host_code_allowed and not self.loaded:
                    self.logger.log(Severity.ERROR, "the plan holds host code, which is not allowed")
                    return None
                if not carries and tuple(serialized_engine[24:28]) != simulator.version:
                    self.logger.log(Severity.ERROR, "the engine was built by another version")
                    return None
                kind = RtxEngine if simulator.flavour == "tensorrt-rtx" else Engine
                return kind(cuda, self, serialized_engine, simulator.contexts)

        self.Runtime = Runtime
