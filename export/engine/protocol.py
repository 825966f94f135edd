"""What the building process and its parent say to each other: one job, then JSON lines."""

from __future__ import annotations

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.plans import Version


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line each way."""


class Job(_Line, frozen=True, kw_only=True):
    """One graph to build: paths, profiles, and the variant's precision."""

    graph: str
    onnx: str
    engine: str
    profiles: list[Profile]
    options: BuildOptions
    half: bool
    timing_cache: str | None


class Phase(_Line, frozen=True, kw_only=True, tag="phase"):
    """How far TensorRT is: steps done of its outermost phase."""

    name: str
    done: int
    total: int


class Built(_Line, frozen=True, kw_only=True, tag="built"):
    """The engine is written. `high_operators` counts the layers that compute in FP32, by TensorRT's type."""

    version: Version
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    high_layers: list[str]
    high_operators: dict[str, int]
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
