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
    """One graph to build: paths, profiles, and the variant's precision; `half` where a part of it is below float32."""

    graph: str
    onnx: str
    engine: str
    profiles: list[Profile]
    options: BuildOptions
    half: bool
    numerics: Numerics = "fp32"
    timing_cache: str | None


class Phase(_Line, frozen=True, kw_only=True, tag="phase"):
    """How far TensorRT is: steps done of its outermost phase."""

    name: str
    done: int
    total: int


class Built(_Line, frozen=True, kw_only=True, tag="built"):
    """The engine is written.

    `profiles` are those that TensorRT has. `high_operators` counts the network's layers that compute in FP32, by its type;
    `fp32_layers` names the engine's, where a GPU could load it.
    """

    version: Version
    profiles: list[Profile]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    high_layers: list[str]
    high_operators: dict[str, int]
    fp32_layers: list[str] | None
    seconds: float
    peak_memory_mb: float
    warnings: list[str]


class Refused(_Line, frozen=True, kw_only=True, tag="refused"):
    """TensorRT did not build it; `message` is for people."""

    message: str
    exit_code: int


Message = Phase | Built | Refused


def encode_line(message: Job | Message) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(message) + b"\n"
