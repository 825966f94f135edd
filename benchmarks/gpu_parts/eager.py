"""The PyTorch model that a bundle was exported from, measured the same way: eager, and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_parts.figures import Figures, Task
from benchmarks.gpu_parts.roofline import synchronise
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.export.families.qavit_t5 import QAViTT5
from edgevqa.export.sources import resolve_source
from edgevqa.export.spec import Loaded
from edgevqa.models.qavit import QAViTForVQA
from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.preprocessing.fixed import preprocess
from edgevqa.runtime.synthetic import FIRST_QUESTION, NEXT_QUESTION, noise_picture
from edgevqa.runtime.telemetry.energy import EnergyMeter
from edgevqa.runtime.telemetry.memory import peak_memory_mb
from edgevqa.runtime.text import QuestionTokenizer, pad

WARM_UP = 3
WORDS = 12


class TorchAnswers:
    """Answers of the PyTorch model on a device, prepared by the runtime's own tokenizer and preprocessing."""

    def __init__(self, task: Task, *, compiled: bool) -> None:
        self.device = task.device
        self.dtype = torch.float16 if task.precision == "fp16" else torch.float32
        source = resolve_source(
            task.model.source,
            config=None if task.model.config is None else Path(task.model.config),
            root=Path(task.model.root),
        )
        self.loaded: Loaded = QAViTT5().load(source)
        self.model: QAViTForVQA = self.loaded.model.to(self.device, self.dtype).eval()
        bundle = Bundle.open(task.model.bundle, check=False)
        generation = bundle.manifest.generation
        if bundle.tokenizer_path is None or bundle.manifest.text is None or generation is None:
            raise ValueError(f"{task.model.bundle} has no tokenizer; expected a bundle that answers questions.")
        self.generation = generation
        self.tokenizer = QuestionTokenizer(bundle.tokenizer_path, bundle.manifest.text)
        self.tokens = 0
        if compiled:
            vision: Any = self.model.vision
            vision.trunk, vision.fuse = torch.compile(vision.trunk), torch.compile(vision.fuse)
            language: Any = self.model.language_model
            language.forward = torch.compile(language.forward)

    def answer(self, pictures: Sequence[Rgb], questions: Sequence[str]) -> list[str]:
        """Greedy answers of a batch; each runs through the whole model."""
        pixels = np.concatenate([preprocess(picture, self.loaded.required_image) for picture in pictures])
        ids, mask = pad([self.tokenizer.question(text) for text in questions], self.generation.pad_token_id)
        given = [torch.from_numpy(array).to(self.device) for array in (ids, mask)]
        found = self.model.generate(self.pixels(pixels), *given, do_sample=False).tolist()
        answers = [_until_end(row[1:], self.generation.eos_token_id) for row in found]
        self.tokens = max(len(answer) for answer in answers)
        return [self.tokenizer.decode(answer) for answer in answers]

    def pixels(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)


def measure_torch(task: Task, samples: Sequence[Sample], *, gpu_memory: Callable[[], float | None]) -> Figures:
    """Measure the task's PyTorch model. Without edgevqa's graphs there is nothing to reuse: a next answer is a first."""
    before, started = gpu_memory(), time.perf_counter()
    answers = TorchAnswers(task, compiled=task.runner == "torch-compile")
    load_s = time.perf_counter() - started
    pairs = [(np.asarray(sample.image), sample.question) for sample in samples]
    texts = [answers.answer([image], [question])[0] for image, question in pairs]
    picture = noise_picture(answers.loaded.image)
    latency: dict[str, Spread] = {}
    tokens: dict[str, int] = {}
    for name, question in (("first", FIRST_QUESTION), ("next", NEXT_QUESTION)):
        latency[name] = _spread(partial(answers.answer, [picture], [question]), task.rounds, task.device)
        tokens[name] = answers.tokens
    answer_ms: dict[int, Spread] = {}
    not_run: dict[str, str] = {}
    for batch in task.batches:
        images, questions = zip(*(pairs[number % len(pairs)] for number in range(batch)), strict=True)
        with _memory_permitting(f"batch {batch}", not_run):
            answer_ms[batch] = _spread(partial(answers.answer, images, questions), task.rounds, task.device)
    with EnergyMeter.open(gpu=task.device == "cuda") as meter:
        first = meter.joules()
        for image, question in pairs:
            answers.answer([image], [question])
        last = meter.joules()
    after = gpu_memory()
    return Figures(
        runner=task.runner,
        precision=task.precision,
        answers=texts,
        latency_ms=latency,
        tokens=tokens,
        answer_ms=answer_ms,
        graph_ms=_vision(answers, task, not_run),
        not_run=not_run,
        load_s=load_s,
        process_mb=peak_memory_mb(),
        gpu_mb=None if before is None or after is None else after - before,
        joules_per_answer=None if first is None or last is None else (last - first) / len(pairs),
        energy_sensors=meter.sensors,
    )


@torch.no_grad()
def _vision(answers: TorchAnswers, task: Task, not_run: dict[str, str]) -> dict[str, dict[int, Spread]]:
    """The two halves of the vision tower, with inputs that are on the device already."""
    found: dict[str, dict[int, Spread]] = {}
    for batch in task.batches:
        with _memory_permitting(f"vision, batch {batch}", not_run):
            _vision_of(answers, task, batch, found)
    return found


def _vision_of(answers: TorchAnswers, task: Task, batch: int, found: dict[str, dict[int, Spread]]) -> None:
    model, image = answers.model, answers.loaded.required_image
    pixels = answers.pixels(np.ones((batch, 3, image.height, image.width), dtype=np.float32))
    states = model.vision.trunk(pixels)
    trunk = _spread(partial(model.vision.trunk, pixels), task.rounds, task.device)
    found.setdefault("vision_trunk", {})[batch] = trunk
    if model.config.fused:
        question = torch.zeros(batch, WORDS, model.config.text_config.d_model, device=task.device, dtype=answers.dtype)
        mask = torch.ones(batch, WORDS, dtype=torch.int64, device=task.device)
        fuse = _spread(partial(model.vision.fuse, states, question, mask), task.rounds, task.device)
        found.setdefault("vision_fusion", {})[batch] = fuse


@contextmanager
def _memory_permitting(what: str, not_run: dict[str, str]) -> Generator[None, None, None]:
    """Go on where the GPU's memory is too small for a batch, and say so."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        not_run[what] = str(error).partition("\n")[0]
        torch.cuda.empty_cache()


def _spread(work: Callable[[], object], rounds: int, device: str) -> Spread:
    times: list[float] = []
    for _ in range(WARM_UP + rounds):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append((time.perf_counter() - started) * 1e3)
    return Spread.of(times[WARM_UP:])


def _until_end(ids: list[int], end: int) -> tuple[int, ...]:
    """The generated tokens, the end token included; what follows is padding."""
    return tuple(ids[: ids.index(end) + 1] if end in ids else ids)
