"""What the builder simulator's parser reads: a network's inputs and outputs, without layers."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.simulators.builder_types import Strict, takes
from tests.simulators.tensorrt_types import DataType, ILogger

_KINDS: dict[int, DataType] = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.BOOL: DataType.BOOL,
}


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, _KINDS[kind.elem_type]
        sides = kind.shape.dim
        self.shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in sides)
        self._names: list[str] = [side.dim_param for side in sides]

    def get_dimension_name(self, index: int) -> str:
        return self._names[index]


class Network(Strict):
    """Without layers: what the real one says of them is tested with the real one."""

    num_layers = 0

    def __init__(self, *, strongly_typed: bool) -> None:
        super().__init__({"name": (str,)}, {"strongly_typed": strongly_typed, "inputs": [], "outputs": []})

    strongly_typed: bool
    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class ParserError:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "Plugin not found, are the plugin name, version, and namespace correct?"


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        takes("OnnxParser", network, Network)
        takes("OnnxParser", logger, ILogger)
        self._network, self._errors = network, list[ParserError]()

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        takes("parse_from_file", model, str)
        graph = onnx.load(Path(model), load_external_data=False).graph
        self._errors = [ParserError(node) for node in graph.node if node.domain not in ("", "ai.onnx")]
        held = {tensor.name for tensor in graph.initializer}
        self._network.inputs[:] = [Tensor(value) for value in graph.input if value.name not in held]
        self._network.outputs[:] = [Tensor(value) for value in graph.output]
        return not self._errors
