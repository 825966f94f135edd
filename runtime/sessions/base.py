"""What every backend gives the pipelines: a session that runs one graph, and tensors that may stay on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
from numpy.typing import NDArray

from edgevqa.runtime.manifest import TensorSpec

Array: TypeAlias = NDArray[Any]


class Tensor(Protocol):
    """A value that one graph gave and another may take without leaving the backend's memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> Array:
        """A host copy, owned by the caller."""
        ...


@runtime_checkable
class RepeatsRows(Protocol):
    """A tensor that can be repeated where it is."""

    def repeat_rows(self, copies: int) -> Tensor:
        """Every row `copies` times, one after the other, as `numpy.repeat` does on axis 0."""
        ...


def wait_for(outputs: Mapping[str, Tensor]) -> None:
    """Wait until a run has ended, by reading its smallest output: sessions return when the device has its work."""
    if outputs:
        min(outputs.values(), key=lambda tensor: math.prod(tensor.shape)).numpy()


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How graphs are run. `threads` 0 means the backend's default; `provider_options` go to the backend as they are.

    With `map_weights` ONNX Runtime's CPU sessions read weights where they lie in their file, without a copy laid out for
    speed: a graph larger than the memory runs, slowly. With `profile` the session is a `ProfiledSession`: slower, and
    only for looking at.
    """

    threads: int = 0
    provider_options: dict[str, str] = {}
    map_weights: bool = False
    profile: bool = False


class NodeTime(msgspec.Struct, frozen=True, kw_only=True):
    """One node as the backend ran it: the graph's nodes that it stands for, its kind, and the median time of its runs.

    `products` are those of the graph's nodes that are matrix products.
    """

    nodes: tuple[str, ...]
    products: tuple[str, ...]
    kind: str
    run_ms: float
    runs: int


class Session(Protocol):
    """One loaded graph. A context manager: `close` frees what the backend holds.

    Outputs belong to the caller and stay valid after the next `run` and after `close`.
    """

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ProfiledSession(Protocol):
    """A session that times its nodes."""

    def forget_times(self) -> None:
        """Begin anew: what ran before, such as a warm-up, does not count."""
        ...

    def node_times(self) -> list[NodeTime]:
        """The times since then; afterwards the session can only be closed."""
        ...
