"""An execution context: shapes, addresses and launches, with every refusal of TensorRT told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.sessions.trt.device import Lane
from edgevqa.runtime.sessions.trt.engine import Engine
from edgevqa.runtime.sessions.trt.outputs import OutputMemory, make_output_memory
from edgevqa.runtime.sessions.trt.tensors import Buffer

Shape = tuple[int, ...]


class Context:
    """One context of one profile, on one lane; used by the thread that holds the lane."""

    def __init__(self, engine: Engine, lane: Lane, profile: int, scratch: Buffer | None) -> None:
        self._engine = engine
        self._lane = lane
        self._scratch = scratch  # held: the context works in it
        self._context: Any = engine.make_context(lane, profile, scratch)
        self._shapes: dict[str, Shape] = {}
        self._memory: dict[str, OutputMemory] = {}

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Set the inputs' shapes; those that it has already are left."""
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                self._refuse(f"refused the shape {shape} of '{name}'")
            self._shapes[name] = shape

    def bind(self, name: str, address: int) -> None:
        """Where a tensor is: device memory, or host memory for those that TensorRT reads there."""
        if not self._context.set_tensor_address(name, address):
            self._refuse(f"refused the address of '{name}'")

    def output_shape(self, name: str) -> Shape | None:
        """The shape of an output once all inputs are set, or None where it depends on the data."""
        try:
            missing = self._context.infer_shapes()
        except RuntimeError:  # its Python raises where its C++ returns a negative number
            self._refuse("found no shapes for its outputs")
        if missing:
            self._refuse(f"lacks {', '.join(missing)}")
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        return None if min(shape, default=0) < 0 else shape

    def allocate_when_known(self, name: str) -> OutputMemory:
        """Let TensorRT ask for an output's memory when it knows the shape; read it after `enqueue`."""
        if name not in self._memory:
            self._memory[name] = make_output_memory(self._engine.toolkit.module, self._engine.device, self._lane)
            if not self._context.set_output_allocator(name, self._memory[name]):
                self._refuse(f"takes no memory for '{name}'")
        return self._memory[name]

    def enqueue(self) -> None:
        """Give the work to the lane; it is done when the lane was synchronised."""
        if not self._context.execute_async_v3(int(self._lane.stream)):
            self._refuse("could not be launched")

    def close(self) -> None:
        """Let the context go; its work must be done."""
        self._context = None
        self._scratch = None
        self._memory.clear()

    def _refuse(self, what: str) -> NoReturn:
        said = self._engine.toolkit.complaint()
        raise EdgeVQAError(f"Graph '{self._engine.graph}' failed in TensorRT: it {what}: {said}.")
