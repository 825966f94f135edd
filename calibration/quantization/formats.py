"""Number formats of quantised values: what a range becomes, and what rounding does to an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevqa.runtime.manifest import Numerics

Floats: TypeAlias = NDArray[np.float32]
Kind = Literal["s8", "u8", "fp8"]
_E4M3 = ir.DataType.FLOAT8E4M3FN.numpy()
FP8_MAX = 448.0  # largest finite E4M3 value
SMALLEST_SCALE = {"fp32": 2.0**-100, "fp16": 2.0**-14}  # 2 ** -14: the smallest normal float16


@dataclass(frozen=True, kw_only=True)
class Format:
    """One of the numerics: the activations' `kind`, and the float format around it, which scales have too."""

    kind: Kind
    around: Literal["fp32", "fp16"]

    @property
    def symmetric(self) -> bool:
        """Whether zero is in the middle; only U8 has a zero point."""
        return self.kind != "u8"

    @property
    def activation_type(self) -> ir.DataType:
        return {"s8": ir.DataType.INT8, "u8": ir.DataType.UINT8, "fp8": ir.DataType.FLOAT8E4M3FN}[self.kind]

    @property
    def weight_type(self) -> ir.DataType:
        return ir.DataType.FLOAT8E4M3FN if self.kind == "fp8" else ir.DataType.INT8

    @property
    def weight_levels(self) -> float:
        """The largest number that a weight becomes."""
        return FP8_MAX if self.kind == "fp8" else 127.0

    def scale(self, value: float) -> float:
        """A scale that the float format around holds exactly."""
        return float(self.scales(np.array([value]))[0])

    def scales(self, values: NDArray[np.floating]) -> Floats:
        """Scales that the float format around holds exactly, none so small that it loses digits; float32."""
        kind = np.float16 if self.around == "fp16" else np.float32
        found: Floats = np.maximum(values, SMALLEST_SCALE[self.around]).astype(kind).astype(np.float32)
        return found

    def activation(self, low: float, high: float) -> Scale:
        """The scale and zero point for values in [low, high], low <= 0 <= high."""
        if self.kind == "u8":
            scale = self.scale((high - low) / 255)
            return Scale(format=self, scale=scale, zero_point=int(np.clip(round(-low / scale), 0, 255)))
        levels = FP8_MAX if self.kind == "fp8" else 127.0
        return Scale(format=self, scale=self.scale(max(-low, high) / levels), zero_point=0)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How the values of one tensor are written: `value = (stored - zero_point) * scale`."""

    format: Format
    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The lowest value that can be written."""
        lowest = {"s8": -128.0, "u8": -float(self.zero_point), "fp8": -FP8_MAX}[self.format.kind]
        return lowest * self.scale

    @property
    def high(self) -> float:
        """The highest value that can be written."""
        highest = {"s8": 127.0, "u8": 255.0 - self.zero_point, "fp8": FP8_MAX}[self.format.kind]
        return highest * self.scale

    def round(self, values: Floats) -> Floats:
        """`values` as they are after quantising and back, float32."""
        if self.format.kind == "fp8":
            return round_fp8((values / self.scale).astype(np.float32)) * np.float32(self.scale)
        low, high = (0, 255) if self.format.kind == "u8" else (-128, 127)
        point, scale = np.float32(self.zero_point), np.float32(self.scale)
        rounded: Floats = (np.clip(np.rint(values / scale) + point, low, high) - point) * scale
        return rounded


def round_fp8(values: Floats) -> Floats:
    """The nearest E4M3 values, saturated; float32."""
    clipped = np.clip(values, -FP8_MAX, FP8_MAX)
    rounded: Floats = clipped.astype(_E4M3).astype(np.float32)
    return rounded


def store_weight(weight: Floats, scales: Floats, kind: Format) -> NDArray[np.number]:
    """A weight (in, out) as int8 or float8_e4m3fn, one scale an output channel; the inverse is a multiplication."""
    scaled = weight / scales
    if kind.kind == "fp8":
        stored: NDArray[np.number] = np.clip(scaled, -FP8_MAX, FP8_MAX).astype(_E4M3)
    else:
        stored = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return stored


def round_weight(weight: Floats, scales: Floats, kind: Format) -> Floats:
    """A weight (in, out) after quantising and back, float32."""
    if kind.kind == "fp8":
        return round_fp8(weight / scales) * scales
    scaled = weight / scales
    np.rint(scaled, out=scaled)
    np.clip(scaled, -127, 127, out=scaled)
    scaled *= scales
    return scaled


FORMATS: dict[Numerics, Format] = {
    "u8-fp32": Format(kind="u8", around="fp32"),
    "s8-fp32": Format(kind="s8", around="fp32"),
    "s8-fp16": Format(kind="s8", around="fp16"),
    "fp8-fp16": Format(kind="fp8", around="fp16"),
}
