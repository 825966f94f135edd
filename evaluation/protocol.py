"""What the process that measures a row and the one that asked for it say to each other: JSON, one message a line."""

from __future__ import annotations

from typing import Any

import msgspec

from edgevqa.runtime.benchmark import Spread


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `options` are the fields of `PipelineOptions`; `samples` None takes the whole data set.

    `latency_runs` 0 asks for the answers alone. The same `seed` chooses the same samples in every process.
    """

    bundle: str
    options: dict[str, Any]
    dataset: str
    samples: int | None
    seed: int
    latency_runs: int
    warm_up_runs: int


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far a stage is."""

    stage: str
    done: int
    total: int


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """The next answers, in the samples' order, and how sure the model was."""

    texts: list[str]
    confidences: list[float]


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules of the batched run; None without a sensor, and then `missing` says why."""

    joules: float | None
    sensors: list[str]
    missing: str | None


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """What was measured: the last message. `answering_s` leaves loading the model and opening pictures out.

    `latency_ms` has `first` and `next`; `per_graph_ms` what each graph took of a first answer, all its runs together.
    """

    load_ms: float
    answering_s: float
    latency_ms: dict[str, Spread]
    per_graph_ms: dict[str, Spread]
    latency_runs: int
    peak_memory_mb: float | None
    energy: Energy


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """An error that edgevqa raised on purpose; `exit_code` tells its branch of the exception tree."""

    message: str
    exit_code: int


Message = Progress | Answered | Measured | Failed


def encode_line(message: msgspec.Struct) -> bytes:
    """One message and a newline."""
    return msgspec.json.encode(message) + b"\n"
