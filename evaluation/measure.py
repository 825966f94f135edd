"""Measuring one row in this process: answers in batches, then the latency of single answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgevqa.evaluation.answers import options_for
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.protocol import Answered, Energy, Measured, Message, Progress, Task
from edgevqa.evaluation.selection import choose_samples, latency_pairs
from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.images import Rgb, load_image
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines import stages_of
from edgevqa.runtime.pipelines.base import AnswerOptions, PipelineOptions
from edgevqa.runtime.sessions import uses_gpu
from edgevqa.runtime.telemetry.energy import EnergyMeter
from edgevqa.runtime.telemetry.memory import peak_memory_mb

Send = Callable[[Message], None]


def measure_row(task: Task, send: Send) -> Measured:
    """Do the task; progress and answers are sent on the way. Raises what loading and answering raise."""
    samples = choose_samples(open_dataset(task.dataset), task.samples, task.seed)
    send(Progress(stage="loading", done=0, total=len(samples)))
    start = time.perf_counter()
    options = {**task.options, "question_cache_mb": 0}
    with Pipeline.from_bundle(
        Bundle.open(task.bundle, check=bool(options.get("check", True))), PipelineOptions.of(options)
    ) as pipeline:
        load_ms = (time.perf_counter() - start) * 1e3
        pipeline.warm_up()
        answering_s, energy = answer_in_batches(pipeline, samples, send)
        latency_ms, per_graph_ms = _latency(pipeline, samples, task, send)
        return Measured(
            load_ms=load_ms,
            answering_s=answering_s,
            latency_ms=latency_ms,
            per_graph_ms=per_graph_ms,
            latency_runs=task.latency_runs,
            peak_memory_mb=peak_memory_mb(),
            energy=energy,
        )


def answer_in_batches(pipeline: Pipeline, samples: Sequence[Sample], send: Send) -> tuple[float, Energy]:
    """Answer every sample, `max_batch` at once; gives the seconds and the energy of answering alone.

    Pictures are opened between two batches, outside of what is measured.
    """
    size, options = pipeline.options.max_batch, options_for(pipeline.manifest, samples)
    seconds, joules = 0.0, 0.0
    with EnergyMeter.open(gpu=uses_gpu(pipeline.backend)) as meter:
        for first in range(0, len(samples), size):
            part = [(load_image(sample.image), sample.question) for sample in samples[first : first + size]]
            before, start = meter.joules(), time.perf_counter()
            answers = pipeline.answer_pairs(part, **options)
            seconds += time.perf_counter() - start
            joules += (meter.joules() or 0.0) - (before or 0.0)
            send(Answered(texts=[each.text for each in answers], confidences=[each.confidence for each in answers]))
            send(Progress(stage="answering", done=first + len(part), total=len(samples)))
        energy = Energy(joules=joules if meter.counters else None, sensors=meter.sensors, missing=meter.missing)
    return seconds, energy


def _latency(
    pipeline: Pipeline, samples: Sequence[Sample], task: Task, send: Send
) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Percentiles of first and next answers, and of every graph's share of a first answer (see `stages_of`).

    On a GPU the shares are those of one more first answer, in which every graph is waited for.
    """
    if task.latency_runs == 0:
        return {}, {}
    pairs = latency_pairs(samples, task.warm_up_runs + task.latency_runs, task.seed)
    worded = any(sample.question for sample in samples)  # then one text is timed, not all that may be chosen from
    options: AnswerOptions = {} if worded else options_for(pipeline.manifest, samples)
    graphs = stages_of(pipeline.manifest, pipeline.variant)
    latency: dict[str, list[float]] = {"first": [], "next": []}
    shares: dict[str, list[float]] = {graph: [] for graph in graphs}
    for number, (first, following) in enumerate(pairs):
        picture = load_image(first.image)
        pipeline.clear_caches()
        first_ms, stages = _timed(pipeline, picture, first.question, options)
        next_ms, _ = _timed(pipeline, picture, following.question, options)
        if uses_gpu(pipeline.backend):
            pipeline.clear_caches()
            with pipeline.graphs.waiting():
                _, stages = _timed(pipeline, picture, first.question, options)
        if number >= task.warm_up_runs:
            latency["first"].append(first_ms)
            latency["next"].append(next_ms)
            for graph, values in shares.items():
                values.append(stages.get(graph, 0.0))
            send(Progress(stage="timing", done=number + 1 - task.warm_up_runs, total=task.latency_runs))
    return _spreads(latency), _spreads(shares)


def _timed(pipeline: Pipeline, picture: Rgb, question: str, options: AnswerOptions) -> tuple[float, dict[str, float]]:
    """Milliseconds of one answer, and of its stages."""
    start = time.perf_counter()
    answer = pipeline.answer(picture, question, **options)
    return (time.perf_counter() - start) * 1e3, answer.timing_ms


def _spreads(values: dict[str, list[float]]) -> dict[str, Spread]:
    return {name: Spread.of(each) for name, each in values.items()}
