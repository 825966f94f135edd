"""ONNX Runtime's values on a device: outputs stay there, and the next graph takes them there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.ort import DTYPES, dtype_name, host_array


class OrtTensor:
    """A value in ONNX Runtime's memory."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype = str(DTYPES.get(value.data_type(), value.data_type()))
        self.device = str(value.device_name())

    def numpy(self) -> Array:
        """A host copy, owned by the caller."""
        # OrtValue.numpy() may be a view that dies with the OrtValue: reading it later crashes (onnxruntime 1.31).
        return np.array(self.value.numpy())


class Place(msgspec.Struct, frozen=True):
    """Where outputs are wanted, in ONNX Runtime's words: `cuda` and the number of a GPU, or `cpu` and 0."""

    device: str
    number: int


def within_reach(value: Tensor | Array, place: Place) -> OrtTensor | Array:
    """A tensor of ours as it is, unless it lies on another device; else a contiguous host array."""
    if isinstance(value, OrtTensor) and value.device in ("cpu", place.device):
        return value
    return host_array(value)


def described(value: OrtTensor | Array) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape."""
    return value.dtype if isinstance(value, OrtTensor) else dtype_name(value.dtype), value.shape


def run_bound(
    ort: Any, session: Any, inputs: Mapping[str, OrtTensor | Array], outputs: list[TensorSpec], place: Place
) -> dict[str, Tensor]:
    """Run a session with its inputs bound where they lie and its outputs left at `place`."""
    binding = session.io_binding()  # a new one each time: a bound output's memory would be reused
    for name, value in inputs.items():
        # No copy of an array: its memory is read.
        held = value.value if isinstance(value, OrtTensor) else ort.OrtValue.ortvalue_from_numpy(value)
        binding.bind_ortvalue_input(name, held)
    for spec in outputs:
        binding.bind_output(spec.name, place.device, place.number)
    if place.device != "cpu":
        binding.synchronize_inputs()  # they may still be on their way to the device
    session.run_with_iobinding(binding)
    found = binding.get_outputs()
    return {spec.name: OrtTensor(value) for spec, value in zip(outputs, found, strict=True)}
