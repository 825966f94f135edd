"""A launch captured as a CUDA graph: buffers whose addresses stay, into which every call copies what has changed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.sessions.trt.context import Context, Shape
from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.dtypes import size_bytes, to_bytes
from edgevqa.runtime.sessions.trt.tensors import Buffer, DeviceTensor

Value: TypeAlias = "DeviceTensor | Array"


def launch_key(profile: int, values: Mapping[str, Value]) -> tuple[object, ...]:
    """What a captured launch is good for: the profile, every shape, and the addresses of what is written in place."""
    places = tuple(
        value.address if isinstance(value, DeviceTensor) and value.fixed else None for value in values.values()
    )
    return (profile, tuple(value.shape for value in values.values()), places)


class CapturedLaunch:
    """One graph for one set of shapes, with a context of its own: TensorRT keeps state of a launch in its context.

    The call that makes it runs it once uncaptured, which TensorRT asks for, and gives that call's outputs.
    """

    def __init__(self, context: Context, device: Device, lane: Lane, outputs: list[TensorSpec]) -> None:
        self._context = context
        self._device = device
        self._lane = lane
        self._outputs = outputs
        self._inputs: dict[str, Buffer] = {}
        self._results: dict[str, tuple[Buffer, Shape]] = {}
        self._copied: dict[str, weakref.ref[DeviceTensor]] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._graph: Any = None

    def first(self, values: Mapping[str, Value], specs: list[TensorSpec]) -> dict[str, DeviceTensor]:
        """Bind the buffers, run once, and capture. Raises `EdgeVQAError` where the launch fails."""
        self._specs = {spec.name: spec for spec in specs}
        self._context.set_shapes({name: value.shape for name, value in values.items()})
        for name, value in values.items():
            if isinstance(value, DeviceTensor) and value.fixed:
                self._context.bind(name, value.address)
            else:
                self._inputs[name] = Buffer(self._device, self._lane, size_bytes(value.shape, self._specs[name].dtype))
                self._context.bind(name, self._inputs[name].address)
        for spec in self._outputs:
            shape = self._context.output_shape(spec.name)
            if shape is None:
                raise EdgeVQAError(f"The shape of output '{spec.name}' depends on the data; it cannot be captured.")
            buffer = Buffer(self._device, self._lane, size_bytes(shape, spec.dtype))
            self._results[spec.name] = (buffer, shape)
            self._context.bind(spec.name, buffer.address)
        self._load(values)
        self._context.enqueue()
        self._device.traffic.launches += 1
        return self._collect()

    def capture(self) -> bool:
        """Record the launch that `first` made. False where it cannot be captured; nothing is lost then."""
        cuda, stream = self._lane.cuda, self._lane.stream
        with self._lane.lock:  # another thread's mark must not get into the graph
            cuda.begin_capture(stream)
            try:
                self._context.enqueue()
            except EdgeVQAError:
                cuda.abandon_capture(stream)
                return False
            try:
                self._graph = cuda.end_capture(stream)
            except EdgeVQAError:
                cuda.forget_error()
                return False
        return True

    def replay(self, values: Mapping[str, Value]) -> dict[str, DeviceTensor]:
        """Run it on other values of the same shapes."""
        self._load(values)
        self._lane.cuda.launch(self._graph, self._lane.stream)
        self._device.traffic.replays += 1
        return self._collect()

    def close(self) -> None:
        """Release it; its work must be done."""
        if self._graph is not None:
            self._lane.cuda.destroy_graph(self._graph)
            self._graph = None
        self._context.close()
        self._inputs.clear()
        self._results.clear()

    def _load(self, values: Mapping[str, Value]) -> None:
        """Copy in what is not there yet; a tensor that nobody changes is copied once."""
        for name, value in values.items():
            if not isinstance(value, DeviceTensor):
                self._lane.upload(to_bytes(value, self._specs[name].dtype), self._inputs[name].address)
                self._copied.pop(name, None)
                continue
            known = self._copied.get(name)
            if not value.fixed and known is not None and known() is value:
                continue
            value.use_on(self._lane)
            if not value.fixed:
                self._lane.copy(self._inputs[name].address, value.address, value.nbytes)
                self._copied[name] = weakref.ref(value)

    def _collect(self) -> dict[str, DeviceTensor]:
        """Copies of the outputs, which become the caller's."""
        found: dict[str, DeviceTensor] = {}
        for spec in self._outputs:
            result, shape = self._results[spec.name]
            buffer = Buffer(self._device, self._lane, size_bytes(shape, spec.dtype))
            self._lane.copy(buffer.address, result.address, size_bytes(shape, spec.dtype))
            found[spec.name] = DeviceTensor(buffer, shape, spec.dtype)
        return found
