"""What every backend gives the pipelines: a session that runs one graph, and tensors that may stay on a device."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TypeAlias

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


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How graphs are run. `threads` 0 means the backend's default; `provider_options` go to the backend as they are."""

    threads: int = 0
    provider_options: dict[str, str] = {}


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
