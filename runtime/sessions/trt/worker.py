"""A session's work on one lane: a context for each profile, and the launches that were captured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.sessions.trt.captured import CapturedLaunch, Value, launch_key
from edgevqa.runtime.sessions.trt.context import Context
from edgevqa.runtime.sessions.trt.device import Lane
from edgevqa.runtime.sessions.trt.dtypes import size_bytes, to_bytes
from edgevqa.runtime.sessions.trt.engine import Engine
from edgevqa.runtime.sessions.trt.options import EngineOptions
from edgevqa.runtime.sessions.trt.tensors import Buffer, DeviceTensor, upload

SEEN = 256
"""So many shapes are remembered, to capture those that come again."""
CHUNK = "length"
"""The axis of a chunk of tokens: single ones come by the hundred and are captured, prompts of one length seldom return."""


class Worker:
    """Runs one engine on one lane. The lane's holder alone calls it."""

    def __init__(
        self, engine: Engine, lane: Lane, inputs: list[TensorSpec], outputs: list[TensorSpec], options: EngineOptions
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._inputs = inputs
        self._outputs = outputs
        self._contexts: dict[int, Context] = {}
        self._scratch: dict[int, Buffer] = {}
        self._launches: OrderedDict[tuple[object, ...], CapturedLaunch] = OrderedDict()
        self._seen: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._captures = options.cuda_graphs and options.graph_cache > 0 and engine.captures
        self._most = options.graph_cache
        self._chunks = [(spec.name, spec.shape.index(CHUNK)) for spec in inputs if CHUNK in spec.shape]
        info = engine.device.cuda.info
        self._mapped = info.integrated if options.mapped_inputs is None else options.mapped_inputs

    def run(self, values: Mapping[str, Value], profile: int) -> dict[str, DeviceTensor]:
        """Launch on values that were checked. The outputs are the caller's; they are computed when they are read."""
        if not self._captures or any(values[name].shape[axis] != 1 for name, axis in self._chunks):
            return self._run(values, profile)
        key = launch_key(profile, values)
        known = self._launches.get(key)
        if known is not None:
            self._launches.move_to_end(key)
            return known.replay(values)
        if key in self._seen:
            return self._capture(key, values, profile)
        self._seen[key] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return self._run(values, profile)

    def close(self) -> None:
        """Wait for the lane's work, then release contexts, graphs and buffers."""
        with self._lane.lock:
            self._lane.cuda.synchronize(self._lane.stream)
        for launch in self._launches.values():
            launch.close()
        for context in self._contexts.values():
            context.close()
        self._launches.clear()
        self._contexts.clear()
        self._scratch.clear()

    def _run(self, values: Mapping[str, Value], profile: int) -> dict[str, DeviceTensor]:
        """Launch without capturing."""
        context = self._context(profile)
        context.set_shapes({name: value.shape for name, value in values.items()})
        held: list[DeviceTensor] = []  # what is copied in lives until it was launched
        for spec in self._inputs:
            context.bind(spec.name, self._input_address(spec, values[spec.name], held))
        found = self._bind_outputs(context)
        context.enqueue()
        self._lane.launched()
        self._engine.device.traffic.launches += 1
        return {spec.name: found.get(spec.name) or self._allocated(context, spec) for spec in self._outputs}

    def _bind_outputs(self, context: Context) -> dict[str, DeviceTensor]:
        """New memory for every output whose shape is known before the launch."""
        found: dict[str, DeviceTensor] = {}
        for spec in self._outputs:
            shape = context.output_shape(spec.name)
            if shape is None:
                self._captures = False
                context.allocate_when_known(spec.name)
                continue
            buffer = Buffer(self._engine.device, self._lane, size_bytes(shape, spec.dtype))
            found[spec.name] = DeviceTensor(buffer, shape, spec.dtype)
            context.bind(spec.name, buffer.address)
        return found

    def _allocated(self, context: Context, spec: TensorSpec) -> DeviceTensor:
        """An output whose memory TensorRT asked for."""
        memory = context.allocate_when_known(spec.name)
        buffer, memory.buffer = memory.buffer, None
        return DeviceTensor(buffer or Buffer(self._engine.device, self._lane, 1), memory.shape, spec.dtype)

    def _input_address(self, spec: TensorSpec, value: Value, held: list[DeviceTensor]) -> int:
        """Where the launch finds an input; host arrays are copied, to the GPU or where it can read them."""
        if isinstance(value, DeviceTensor):
            if spec.name in self._engine.on_host:
                return self._on_host(spec, value.numpy())
            value.use_on(self._lane)
            return value.address
        if spec.name in self._engine.on_host:
            return self._on_host(spec, value)
        data = to_bytes(value, spec.dtype)
        if self._mapped and data.nbytes:
            return self._lane.stage(data, mapped=True).device_address
        held.append(upload(self._engine.device, self._lane, data, value.shape, spec.dtype))
        return held[-1].address

    def _on_host(self, spec: TensorSpec, value: Array) -> int:
        """TensorRT reads shapes on the host, at the launch."""
        return self._lane.stage(to_bytes(value, spec.dtype), mapped=False).address

    def _capture(self, key: tuple[object, ...], values: Mapping[str, Value], profile: int) -> dict[str, DeviceTensor]:
        """Launch, and capture the launch for the next time."""
        while len(self._launches) >= self._most:
            self._lane.synchronize()
            self._launches.popitem(last=False)[1].close()
        context = Context(self._engine, self._lane, profile, self._scratch_of(profile))
        launch = CapturedLaunch(context, self._engine.device, self._lane, self._outputs)
        outputs = launch.first(values, self._inputs)
        if launch.capture():
            self._launches[key] = launch
        else:
            self._captures = False
            self._lane.synchronize()
            launch.close()
        return outputs

    def _context(self, profile: int) -> Context:
        if profile not in self._contexts:
            self._contexts[profile] = Context(self._engine, self._lane, profile, self._scratch_of(profile))
        return self._contexts[profile]

    def _scratch_of(self, profile: int) -> Buffer | None:
        """One for all contexts of a profile: on one lane they never run at once."""
        size = self._engine.scratch_bytes(profile)
        if size and profile not in self._scratch:
            self._scratch[profile] = Buffer(self._engine.device, self._lane, size)
        return self._scratch.get(profile)
