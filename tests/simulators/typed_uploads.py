"""Dtypes of what our layer uploads: CUDA is given bytes alone, so the simulator is told beside the call what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.sessions.trt import cache, captured, worker
from edgevqa.runtime.sessions.trt.device import Lane
from tests.simulators.cuda_simulator import CudaSimulator


class Typed(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes that know what they were."""

    was: str | None = None


def note_dtypes(patch: pytest.MonkeyPatch, simulator: Callable[[], CudaSimulator]) -> None:
    """Let the simulator know of every staged array's dtype. Our own functions run as they are."""
    own_stage = Lane.stage

    def stage(lane: Lane, data: Any, *, mapped: bool) -> Any:
        block = own_stage(lane, data, mapped=mapped)
        dtype = data.was if isinstance(data, Typed) else None
        simulator().host[block.address].writes.add(0, data.nbytes, dtype, whole=True)
        return block

    patch.setattr(Lane, "stage", stage)
    for module in (cache, captured, worker):
        patch.setattr(module, "to_bytes", _typed(module.to_bytes))


def _typed(own: Callable[..., Any]) -> Callable[..., Any]:
    def to_bytes(array: Any, wanted: str) -> Any:
        data = own(array, wanted).view(Typed)
        data.was = wanted if wanted == "bfloat16" else str(array.dtype)  # numpy has no bfloat16: float32 is rounded
        return data

    return to_bytes
