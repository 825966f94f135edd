"""What simulated memory remembers of who wrote it: the extent and dtype of each write, so that foreign bytes are refused."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class SimulatorError(AssertionError):
    """What the real GPU, driver or TensorRT refuses, corrupts or leaves undefined."""


class Write(NamedTuple):
    """One write. `whole` is one tensor at once; the dtype is None where bytes alone are known."""

    start: int
    stop: int
    dtype: str | None
    whole: bool


class Writes:
    """Which write every byte of an allocation comes from."""

    def __init__(self, size: int) -> None:
        self._all = [Write(0, 0, None, whole=False)]  # of bytes that nobody wrote
        self._owners = np.zeros(size, dtype=np.int32)

    def add(self, start: int, stop: int, dtype: str | None = None, *, whole: bool = False) -> None:
        """Remember a write of a range."""
        self._all.append(Write(start, stop, dtype, whole))
        self._owners[start:stop] = len(self._all) - 1

    def seen(self, start: int, stop: int) -> list[Write]:
        """The writes that a read of a range meets."""
        owners = self._owners[start:stop]
        if owners.size and (owners == owners[0]).all():
            return [self._all[owners[0]]]
        return [self._all[number] for number in np.unique(owners)]

    def dtype_of(self, start: int, stop: int) -> str | None:
        """The dtype of a range, where it is known and one."""
        kinds = {write.dtype for write in self.seen(start, stop)}
        return kinds.pop() if len(kinds) == 1 else None

    def check_extent(self, start: int, stop: int, who: str) -> None:
        """Raise where a read takes a part of a tensor that was written at once, or more than it."""
        for write in self.seen(start, stop):
            if write.whole and (write.start, write.stop) != (start, stop):
                raise SimulatorError(
                    f"{who} reads {stop - start} bytes where {write.stop - write.start} were written at once: "
                    "wrong dtype or shape"
                )

    def check_dtype(self, start: int, stop: int, dtype: str, who: str) -> None:
        """Raise where a read meets numbers of another dtype."""
        for write in self.seen(start, stop):
            if write.dtype not in (None, dtype):
                raise SimulatorError(f"{who} reads {dtype} where {write.dtype} was written")
