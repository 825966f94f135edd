"""Latency of a bundle without a data set: every graph, the first answer on a picture and the next one."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
import numpy as np

from edgevqa.runtime.backend_choice import Note
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.hashing import Progress
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.sessions import uses_gpu
from edgevqa.runtime.synthetic import FIRST_QUESTION, NEXT_QUESTION, noise_picture


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of some measurements, in the unit of the field that holds them."""

    p50: float
    p90: float
    p99: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Percentiles with linear interpolation."""
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(p50=p50, p90=p90, p99=p99, lowest=min(values), highest=max(values))


class LatencyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `measure` found. Loading and warm-up are left out.

    `latency_ms` has `first` (nothing known of picture and question) and `next` (another new question on that picture).
    `stage_ms` has every single run of each graph and host stage; the decoder runs once a token. On a GPU these come from as
    many further answers, in which every graph is waited for. `tokens` were generated
    for the first and the next answer. `machine` is what it ran on, as it was right after.
    """

    precision: str
    variant: str
    backend: str
    threads: int
    runs: int
    warm_up_runs: int
    load_ms: float
    latency_ms: dict[str, Spread]
    stage_ms: dict[str, Spread]
    tokens: dict[str, int]
    machine: dict[str, Any] = {}


def measure(
    path: str | os.PathLike[str],
    *,
    runs: int = 20,
    warm_up_runs: int = 3,
    progress: Progress | None = None,
    note: Note | None = None,
    **options: Any,
) -> LatencyReport:
    """Load the bundle and time `runs` first and next answers on one synthetic picture, in one process.

    `options` are the fields of `PipelineOptions`; questions are not cached, the picture's trunk is. `progress` and
    `note` are called as by `Pipeline.load`. Raises `ConfigError` for fewer than one run, and what loading raises.
    """
    if runs < 1 or warm_up_runs < 0:
        raise ConfigError(f"runs is {runs} and warm_up_runs {warm_up_runs}; expected at least 1 and 0.")
    start = time.perf_counter()
    with Pipeline.load(path, progress=progress, note=note, **{**options, "question_cache_mb": 0}) as pipeline:
        load_ms = (time.perf_counter() - start) * 1e3
        picture = noise_picture(pipeline.manifest.image)
        for _ in range(warm_up_runs):
            _run_once(pipeline, picture)
        pipeline.statistics.history = {}
        answered = [_run_once(pipeline, picture) for _ in range(runs)]
        if uses_gpu(pipeline.backend):  # answers are timed as they come, their stages on their own
            pipeline.statistics.history = {}
            with pipeline.graphs.waiting():
                for _ in range(runs):
                    _run_once(pipeline, picture)
        return _report(pipeline, answered, warm_up_runs, load_ms)


class _Run(msgspec.Struct, frozen=True):
    """One first and one next answer: their times in milliseconds, and their tokens."""

    latency_ms: dict[str, float]
    tokens: dict[str, int]


def _run_once(pipeline: Pipeline, picture: Rgb) -> _Run:
    pipeline.clear_caches()
    latency_ms: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for name, question in (("first", FIRST_QUESTION), ("next", NEXT_QUESTION)):
        start = time.perf_counter()
        answer = pipeline.answer(picture, question)
        latency_ms[name] = (time.perf_counter() - start) * 1e3
        tokens[name] = 0 if pipeline.manifest.generation is None else len(answer.tokens)
    return _Run(latency_ms, tokens)


def _report(pipeline: Pipeline, runs: list[_Run], warm_up_runs: int, load_ms: float) -> LatencyReport:
    return LatencyReport(
        precision=pipeline.manifest.variants[pipeline.variant].precision,
        variant=pipeline.variant,
        backend=pipeline.backend,
        threads=pipeline.options.threads,
        runs=len(runs),
        warm_up_runs=warm_up_runs,
        load_ms=load_ms,
        latency_ms={name: Spread.of([run.latency_ms[name] for run in runs]) for name in runs[0].latency_ms},
        stage_ms={stage: Spread.of(values) for stage, values in (pipeline.statistics.history or {}).items()},
        tokens=runs[-1].tokens,
        machine=describe_machine(),
    )
