"""One of edgevqa's backends, measured: answers, latency, batches, and every graph by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.gpu_parts.figures import Figures, Task
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.manifest import GraphSpec, TensorSpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.sessions.base import Array, Session, Tensor, wait_for
from edgevqa.runtime.synthetic import FIRST_QUESTION, NEXT_QUESTION, noise_picture
from edgevqa.runtime.telemetry.energy import EnergyMeter
from edgevqa.runtime.telemetry.memory import peak_memory_mb

WARM_UP = 3
IN_A_ROW = 4  # runs between two waits, so that waiting costs little
WORDS = 12


def measure_backend(task: Task, samples: Sequence[Sample], *, gpu_memory: Callable[[], float | None]) -> Figures:
    """Load the bundle with the task's backend and measure it. Raises what loading raises."""
    before, started = gpu_memory(), time.perf_counter()
    pairs: list[tuple[Array, str]] = [(np.asarray(sample.image), sample.question) for sample in samples]
    with Pipeline.load(
        task.model.bundle,
        backend=task.runner,
        precision=task.precision,
        max_batch=max(task.batches),
        question_cache_mb=0,
    ) as pipeline:
        load_s = time.perf_counter() - started
        not_run: dict[str, str] = {}
        texts = [pipeline.answer(image, question).text for image, question in pairs]
        latency, tokens = _latency(pipeline, task.rounds)
        decoder = decoder_ms(pipeline, task.rounds)
        answer_ms: dict[int, Spread] = {}
        for batch in task.batches:
            try:
                answer_ms[batch] = _batches(pipeline, pairs, batch, task.rounds)
            except EdgeVQAError as error:
                not_run[f"batch {batch}"] = str(error)
        with EnergyMeter.open(gpu=task.device == "cuda") as meter:
            spent = _energy(pipeline, pairs, meter)
        graph_ms = _graphs(pipeline, task, not_run)
        after = gpu_memory()
        return Figures(
            runner=task.runner,
            precision=pipeline.variant,
            answers=texts,
            latency_ms=latency,
            tokens=tokens,
            answer_ms=answer_ms,
            graph_ms=graph_ms,
            not_run=not_run,
            decode_tokens_per_s=1e3 / decoder,
            load_s=load_s,
            process_mb=peak_memory_mb(),
            gpu_mb=None if before is None or after is None else after - before,
            joules_per_answer=spent,
            energy_sensors=meter.sensors,
        )


def _latency(pipeline: Pipeline, rounds: int) -> tuple[dict[str, Spread], dict[str, int]]:
    """First and next answers, and their tokens."""
    picture = noise_picture(pipeline.manifest.image)
    times: dict[str, list[float]] = {"first": [], "next": []}
    tokens: dict[str, int] = {}
    for number in range(WARM_UP + rounds):
        pipeline.clear_caches()
        for name, question in (("first", FIRST_QUESTION), ("next", NEXT_QUESTION)):
            started = time.perf_counter()
            answer = pipeline.answer(picture, question)
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - started) * 1e3)
            tokens[name] = len(answer.tokens)
    return {name: Spread.of(values) for name, values in times.items()}, tokens


def decoder_ms(pipeline: Pipeline, rounds: int) -> float:
    """The median milliseconds of a decoder step at batch 1."""
    picture = noise_picture(pipeline.manifest.image)
    history: dict[str, list[float]] = {}
    pipeline.statistics.history = history
    try:
        with pipeline.graphs.waiting():
            for _ in range(rounds):
                pipeline.answer(picture, NEXT_QUESTION)
        return float(np.median(history["language_decoder"]))
    finally:
        pipeline.statistics.history = None


def _batches(pipeline: Pipeline, pairs: Sequence[tuple[Array, str]], batch: int, rounds: int) -> Spread:
    """Milliseconds of whole batches about pictures that are not known."""
    chosen = [pairs[number % len(pairs)] for number in range(batch)]
    times: list[float] = []
    for number in range(1 + rounds):
        pipeline.clear_caches()
        started = time.perf_counter()
        pipeline.answer_pairs(chosen)
        if number:
            times.append((time.perf_counter() - started) * 1e3)
    return Spread.of(times)


def _energy(pipeline: Pipeline, pairs: Sequence[tuple[Array, str]], meter: EnergyMeter) -> float | None:
    """Joules of an answer at batch 1, by the sensors that there are."""
    before = meter.joules()
    for image, question in pairs:
        pipeline.clear_caches()
        pipeline.answer(image, question)
    after = meter.joules()
    return None if before is None or after is None else (after - before) / len(pairs)


def _graphs(pipeline: Pipeline, task: Task, not_run: dict[str, str]) -> dict[str, dict[int, Spread]]:
    found: dict[str, dict[int, Spread]] = {}
    random = np.random.default_rng(0)
    specs = pipeline.bundle.variant(pipeline.variant).graphs
    for name, session in pipeline.graphs.sessions.items():
        for batch in task.batches:
            try:
                axes = axis_sizes(pipeline.bundle, specs, batch)
                inputs: dict[str, Tensor | Array] = {
                    spec.name: random_input(spec, axes, random) for spec in session.inputs
                }
                found.setdefault(name, {})[batch] = _graph(session, inputs, task.rounds)
            except EdgeVQAError as error:  # an engine may not have been built for this batch
                not_run[f"{name}, batch {batch}"] = str(error)
    return found


def _graph(session: Session, inputs: dict[str, Tensor | Array], rounds: int) -> Spread:
    """Milliseconds of one run among some in a row, the last of which is waited for."""
    times: list[float] = []
    for number in range(1 + rounds):
        started = time.perf_counter()
        outputs: dict[str, Tensor] = {}
        for _ in range(IN_A_ROW):
            outputs = session.run(inputs)
        wait_for(outputs)
        if number:
            times.append((time.perf_counter() - started) * 1e3 / IN_A_ROW)
    return Spread.of(times)


def axis_sizes(bundle: Bundle, graphs: dict[str, GraphSpec], batch: int) -> dict[str, int]:
    """Sizes of the named axes for a batch of usual questions."""
    most = bundle.manifest.text.max_tokens if bundle.manifest.text else WORDS
    words = min(WORDS, most)
    slots = bundle.manifest.generation.max_new_tokens if bundle.manifest.generation else 8
    axes = {"batch": batch, "image": batch, "words": words, "capacity": slots, "keys": words}
    for graph in graphs.values():
        for spec in graph.inputs:
            if spec.name == "image_embeds" and isinstance(spec.shape[1], int):
                axes["keys"] = spec.shape[1] + words
    return axes


def random_input(spec: TensorSpec, axes: dict[str, int], random: np.random.Generator) -> Array:
    """An input that the graph can work with: masks of ones, one filled slot of the cache, low token ids, noise."""
    shape = tuple(axis if isinstance(axis, int) else axes[axis] for axis in spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape, dtype=np.float32).astype(dtype)
    if "mask" in spec.name or "length" in spec.name:
        return np.ones(shape, dtype=dtype)
    return random.integers(3, 50, size=shape).astype(dtype)
