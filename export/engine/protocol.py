"""What the building process and its parent say to each other: one job, then JSON lines."""

from __future__ import annotations

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.manifest import Numerics, TensorSpec
from edgevqa.runtime.plans import Version


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line each way."""


class Job(_Line, frozen=True, kw_only=True):
    """One graph to build: paths, profiles, settled options, and what the variant computes in."""

    graph: str
    onnx: str
    engine: str
    profiles: list[Profile]
    options: BuildOptions
    numerics: Numerics
    timing_cache: str | None

    @property
    def half(self) -> bool:
        """Whether a part of it computes below float32."""
        return self.numerics not in ("fp32", "s8-fp32", "u8-fp32")


class Phase(_Line, frozen=True, kw_only=True, tag="phase"):
    """How far TensorRT is: steps done of its outermost phase."""

    name: str
    done: int
    total: int


class Built(_Line, frozen=True, kw_only=True, tag="built"):
    """The engine is written: it is not lost where the process ends after this line.

    `profiles` are those that TensorRT has. `high_operators` counts the network's layers that compute in FP32, by its type;
    `fp32_layers` names the engine's, which the process only tells later (`Inspected`).
    """

    version: Version
    profiles: list[Profile]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    high_layers: list[str]
    high_operators: dict[str, int]
    fp32_layers: list[str] | None = None
    seconds: float
    peak_memory_mb: float
    warnings: list[str]


class Inspected(_Line, frozen=True, kw_only=True, tag="inspected"):
    """What the finished engine says of itself: names of the layers that give out FP32, None where none were told.

    `warning` is what to know of that.
    """

    layers: list[str] | None = None
    warning: str | None = None

    def added_to(self, built: Built) -> Built:
        """The engine with what it says of itself."""
        warnings = [*built.warnings, *([self.warning] if self.warning else [])]
        return msgspec.structs.replace(built, fp32_layers=self.layers, warnings=warnings)


class Refused(_Line, frozen=True, kw_only=True, tag="refused"):
    """TensorRT did not build it; `message` is for people."""

    message: str
    exit_code: int


Message = Phase | Built | Inspected | Refused


def encode_line(message: Job | Message) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(message) + b"\n"
