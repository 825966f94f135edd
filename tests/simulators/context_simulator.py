"""The TensorRT simulator's execution context: shapes, addresses and launches, each misuse refused or raised."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.simulators.cuda_parts import ALIGNMENT, Op
from tests.simulators.tensorrt_types import (
    NUMPY,
    CudaGraphStrategy,
    ExecutionContextAllocationStrategy,
    IOutputAllocator,
    Severity,
)
from tests.simulators.writes import SimulatorError

if TYPE_CHECKING:
    from tests.simulators.tensorrt_simulator import Engine

Shape = tuple[int, ...]


class ExecutionContext:
    """What `IExecutionContext` is to a session."""

    def __init__(
        self,
        engine: Engine,
        strategy: ExecutionContextAllocationStrategy,
        needs: Sequence[weakref.ref[Any]] = (),
    ) -> None:
        """`needs` are objects that TensorRT's Python does not keep for it."""
        self.engine, self.strategy, self.needs = engine, strategy, needs
        self.captures: CudaGraphStrategy | None = None  # how TensorRT-RTX was asked to capture by itself
        self.cuda = engine.cuda
        self.profile: int | None = None
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.scratch: tuple[int, int] | None = None
        self.launched: Any = None
        self.thread: int | None = None  # who is setting it up for the next launch

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._touch()
        if not 0 <= profile_index < len(self.engine.profiles):
            self._complain(f"there is no profile {profile_index}")
            raise RuntimeError("Error in set optimization profile async.")  # here TensorRT's Python returns no False
        self.profile = profile_index
        self.shapes.clear()
        self.scratch = None
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._touch()
        if self.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise SimulatorError("memory was given to a context that has its own")
        self.cuda.usable(memory, size)
        self.scratch = (memory, size)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._touch()
        if self.profile is None:
            raise SimulatorError("a shape is set before a profile was selected")
        sides = self.engine.profiles[self.profile].get(name)
        if sides is None:
            return self._complain(f"'{name}' is no input")
        low, high = sides["min"], sides["max"]
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._complain(
                f"the shape {shape} of '{name}' is not within {low} and {high} of profile {self.profile}"
            )
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._touch()
        if name not in self.engine.inputs and name not in self.engine.outputs:
            return self._complain(f"'{name}' is no tensor")
        self.addresses[name] = int(memory)
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._touch()
        if not isinstance(output_allocator, IOutputAllocator) or name not in self.engine.outputs:
            return self._complain(f"no allocator for '{name}'")
        self.allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        self._touch()
        if self.engine.traits.get("shapeless"):
            self._complain("an output would have a negative dimension")
            raise RuntimeError("infer_shapes error code: -1")
        self._check_axes()
        on_host = [name for name in self.engine.traits.get("on_host", []) if name not in self.addresses]
        return [name for name in self.engine.inputs if name not in self.shapes] + on_host

    def _check_axes(self) -> None:
        """An axis has one size in all inputs that name it."""
        sizes: dict[str, set[int]] = {}
        for name, shape in self.shapes.items():
            for axis, size in zip(self.engine.axes[name], shape, strict=True):
                if isinstance(axis, str):
                    sizes.setdefault(axis, set()).add(size)
        several = [axis for axis, found in sizes.items() if len(found) > 1]
        if several:
            self._complain(f"dimensions of one name differ: {', '.join(several)}")
            raise RuntimeError("infer_shapes error code: -1")

    def get_tensor_shape(self, name: str) -> Shape:
        self._touch()
        if self.infer_shapes():
            raise SimulatorError(f"the shape of '{name}' is asked for before all inputs have theirs")
        shape = self.shapes.get(name) or self.engine.shapes_of(self.shapes)[name]
        return (-1,) * len(shape) if name in self.engine.traits.get("data_dependent", []) else shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        try:
            return self._execute(stream_handle)
        finally:
            self.thread = None

    def _execute(self, stream_handle: int) -> bool:
        self._touch()
        if any(needed() is None for needed in self.needs):
            raise SimulatorError("a context is used whose runtime or configuration is gone")
        stream: Any = self.cuda._stream(stream_handle)
        missing = self.infer_shapes()
        if missing or self.profile is None:
            return self._complain(f"inputs without a shape: {', '.join(missing)}")
        late = [name for name in self.engine.outputs if name in self.engine.traits.get("data_dependent", [])]
        without = [
            name
            for name in (*self.engine.inputs, *self.engine.outputs)
            if name not in self.addresses and name not in late
        ]
        if without:
            return self._complain(f"tensors without an address: {', '.join(without)}")
        if stream.capturing is not None:
            if late or self.engine.traits.get("uncapturable"):
                return self._complain("the launch cannot be captured")
            if self.launched != self.state():
                raise SimulatorError("a launch is captured that was not made once before, as it is")
        elif late:
            return self._execute_now(stream, late)
        op: Any = self._op()
        if any(
            address == self.scratch[0]
            for other in self.cuda._streams()
            if other is not stream and self.scratch
            for pending in other.queue
            for address, _ in pending.places
        ):
            raise SimulatorError("two streams work in the same memory at once")
        self.cuda.give(stream, op)
        self.launched = self.state()
        return True

    def state(self) -> tuple[Any, ...]:
        return (self.profile, dict(self.shapes), dict(self.addresses), self.scratch)

    def _op(self) -> Op:
        """The launch as it is set up now."""
        sizes = self._sizes()
        on_host = self.engine.traits.get("on_host", [])
        places = [(self.addresses[name], size) for name, size in sizes.items() if name not in on_host]
        for address, size in places:
            self.cuda.usable(address, size)
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile or 0)
        if self.strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            if self.scratch is None or self.scratch[1] < needed:
                raise SimulatorError(f"the context has too little memory to work in; it needs {needed} bytes")
            places.append(self.scratch)
        self._check_overlaps(places)
        shapes, addresses, state = dict(self.shapes), dict(self.addresses), self.state()
        now = {name: self._read(name, addresses[name], shapes[name]) for name in on_host}  # read at the launch
        outputs = self.engine.shapes_of(shapes)

        def run() -> None:
            feeds = {name: self._read(name, addresses[name], shapes[name]) for name in shapes if name not in now}
            found: Any = self.engine.session.run(list(outputs), {**feeds, **now})
            for name, value in zip(outputs, found, strict=True):
                self._write(addresses[name], np.asarray(value))

        def before_replay() -> None:
            if self.state() != state:
                raise SimulatorError("a captured graph is replayed after its context got other addresses or shapes")

        op: Any = Op("launch", places, run)
        op.before_replay = before_replay
        made: Op = op
        return made

    def _execute_now(self, stream: Any, late: list[str]) -> bool:
        """A launch whose output shapes depend on the data waits for its inputs, and asks for memory."""
        self.cuda.drain(stream)
        feeds = {name: self._read(name, self.addresses[name], shape) for name, shape in self.shapes.items()}
        found: Any = self.engine.session.run(list(self.engine.outputs), feeds)
        for name, value in zip(self.engine.outputs, found, strict=True):
            address = self.addresses.get(name, 0)
            if name in late:
                size = max(1, value.nbytes)
                address = self.allocators[name].reallocate_output_async(name, 0, size, ALIGNMENT, int(stream))
                self.cuda.usable(address, size)
                self.allocators[name].notify_shape(name, value.shape)
            self.cuda.give(stream, Op("write", [], lambda a=address, v=value: self._write(a, v)))  # type: ignore[misc]
        return True

    def _sizes(self) -> dict[str, int]:
        shapes = {**self.shapes, **self.engine.shapes_of(self.shapes)}
        kinds = {**self.engine.inputs, **self.engine.outputs}
        return {
            name: max(1, int(np.prod(shapes[name])) * np.dtype(NUMPY[kind]).itemsize) for name, kind in kinds.items()
        }

    def _check_overlaps(self, places: list[tuple[int, int]]) -> None:
        """An output lies in no other tensor's memory."""
        outputs = [(self.addresses[name], size) for name, size in self._sizes().items() if name in self.engine.outputs]
        for address, size in outputs:
            touching = [place for place in places if place[0] < address + size and address < place[0] + place[1]]
            if len(touching) > 1:
                raise SimulatorError(f"an output at {address:#x} overlaps another tensor")

    def _read(self, name: str, address: int, shape: Shape) -> NDArray[Any]:
        kind = np.dtype(NUMPY[self.engine.inputs[name]])
        on_host = name in self.engine.traits.get("on_host", [])
        memory, start = self.cuda.place(address, int(np.prod(shape)) * kind.itemsize, on_host=on_host)
        stop = start + int(np.prod(shape)) * kind.itemsize
        if not on_host and not memory.written[start:stop].all():
            raise SimulatorError(
                f"'{name}' reads bytes at {address:#x} that nobody wrote: wrong dtype, or too little copied"
            )
        memory.writes.check_extent(start, stop, f"'{name}'")
        memory.writes.check_dtype(start, stop, str(kind), f"'{name}'")
        return memory.data[start:stop].view(kind).reshape(shape).copy()

    def _write(self, address: int, value: NDArray[Any]) -> None:
        memory, start = self.cuda.place(address, value.nbytes)
        stop = start + value.nbytes
        memory.data[start:stop] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        memory.written[start:stop] = True
        memory.writes.add(start, stop, str(value.dtype), whole=True)

    def _complain(self, text: str) -> bool:
        self.engine.logger.log(Severity.ERROR, text)
        return False

    def _touch(self) -> None:
        """From the first setting to the launch, one thread has the context."""
        me = threading.get_ident()
        if self.thread not in (None, me):
            raise SimulatorError("two threads use one context at once")
        self.thread = me
