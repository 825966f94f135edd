"""Waiting for a run: engines return when the device has its work."""

from __future__ import annotations

import numpy as np

from edgevqa.runtime.sessions.base import Array, wait_for


class Value:
    """A tensor that notes that it was read."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.is_read = False

    def numpy(self) -> Array:
        """Say so."""
        self.is_read = True
        return np.zeros(self.shape, dtype=np.float32)


def test_the_smallest_output_is_read() -> None:
    """One is enough, and copying the others to the host would be counted."""
    values = {"large": Value(4, 8), "small": Value(2, 3), "long": Value(7)}
    wait_for(values)
    assert [name for name, value in values.items() if value.is_read] == ["small"]
    wait_for({})
