"""A simulated GPU with an engine of one operator, for tests of the simulators themselves."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from tests.simulators.cuda_parts import cudaMemcpyKind, cudaStreamCaptureMode
from tests.simulators.cuda_simulator import CudaSimulator
from tests.simulators.tensorrt_simulator import TensorRTSimulator, engine_bytes
from tests.simulators.tensorrt_types import ExecutionContextAllocationStrategy, ILogger

H2D = cudaMemcpyKind.cudaMemcpyHostToDevice
LOCAL = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
FLOAT = int(TensorProto.FLOAT)


def plan_of(node: NodeProto, inputs: str, made: int = FLOAT, **traits: Any) -> bytes:
    """An engine of one operator: `inputs` (a letter each) and y are (batch, 4), batch 1 to 3; y has the dtype `made`."""
    takes = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in inputs]
    gives = helper.make_tensor_value_info("y", made, ["batch", 4])
    graph = helper.make_graph([node], "one", takes, [gives])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    profile = {name: {"min": [1, 4], "opt": [2, 4], "max": [3, 4]} for name in inputs}
    return engine_bytes(model.SerializeToString(), [profile], **traits)


class Log(ILogger):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, severity: int, msg: str) -> None:
        self.lines.append(msg)


class Bench:
    """A GPU with a stream, and an engine that doubles x (batch, 4) float32; its calls are made as a session makes them."""

    def __init__(self, **traits: Any) -> None:
        self.cuda = CudaSimulator()
        self.cuda.cudaSetDevice(0)
        self.stream = self.cuda.cudaStreamCreateWithFlags(1)[1]
        self.log = Log()
        self.trt = TensorRTSimulator("tensorrt", self.cuda)
        self.plan = plan_of(helper.make_node("Add", ["x", "x"], ["y"]), "x", **traits)
        self.engine: Any = self.load(self.plan)

    def load(self, plan: bytes) -> Any:
        return self.trt.Runtime(self.log).deserialize_cuda_engine(plan)

    def malloc(self, size: int = 16) -> int:
        return int(self.cuda.cudaMallocAsync(size, self.stream)[1])

    def pinned(self, values: list[float]) -> tuple[int, Any]:
        address = int(self.cuda.cudaHostAlloc(len(values) * 4, 0)[1])
        view = np.frombuffer((ctypes.c_uint8 * (len(values) * 4)).from_address(address), np.float32)  # type: ignore[call-overload]
        view[:] = values
        return address, view

    def sync(self) -> None:
        self.cuda.cudaStreamSynchronize(self.stream)

    def context(self, rows: int = 1, **addresses: int) -> Any:
        made = self.engine.create_execution_context(ExecutionContextAllocationStrategy.STATIC)
        made.set_optimization_profile_async(0, self.stream)
        made.set_input_shape("x", (rows, 4))
        for name, address in addresses.items():
            made.set_tensor_address(name, address)
        return made

    def uploaded(self, values: list[float]) -> int:
        source, destination = self.pinned(values)[0], self.malloc(len(values) * 4)
        self.cuda.cudaMemcpyAsync(destination, source, len(values) * 4, H2D, self.stream)
        return destination

    def captured(self, context: Any) -> Any:
        context.execute_async_v3(self.stream)
        self.cuda.cudaStreamBeginCapture(self.stream, LOCAL)
        context.execute_async_v3(self.stream)
        graph = self.cuda.cudaStreamEndCapture(self.stream)[1]
        return self.cuda.cudaGraphInstantiate(graph, 0)[1]
