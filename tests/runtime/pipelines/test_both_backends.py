"""Every backend gives the answers of ONNX Runtime: the packaged questions, easy-VQA, batches, beams, choices, streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgevqa.runtime import Answer, Pipeline
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.sessions.base import Array, Tensor

OTHERS = [name for name, row in BACKENDS.items() if row.flavour is None and name != "onnxruntime"]
Recorded = list[tuple[str, dict[str, Array]]]


@pytest.fixture(params=OTHERS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not BACKENDS[name].installed():
        pytest.skip(f"{BACKENDS[name].package} is not installed")
    return name


def on_both(path: Path, backend: str, ask: Callable[[Pipeline], list[Answer]]) -> tuple[list[Answer], list[Answer]]:
    """The answers of ONNX Runtime and those of the other backend, each from a pipeline of its own."""
    found: list[list[Answer]] = []
    for name in ("onnxruntime", backend):
        with Pipeline.load(path, backend=name, threads=1) as pipeline:
            assert pipeline.backend == name
            found.append(ask(pipeline))
    return found[0], found[1]


def assert_same(pair: tuple[list[Answer], list[Answer]], *, at_least: int) -> None:
    first, second = pair
    assert len(first) == len(second) >= at_least
    for one, other in zip(first, second, strict=True):
        assert (one.question, one.text, one.tokens) == (other.question, other.text, other.tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
        assert (one.scores is None) == (other.scores is None)


def test_the_packaged_questions(reference_bundle: Path, backend: str) -> None:
    from edgevqa.export.samples import PICTURES, sample_questions

    samples = sample_questions()

    def ask(pipeline: Pipeline) -> list[Answer]:
        return [pipeline.answer(PICTURES / sample.image, sample.question) for sample in samples]

    answers = on_both(reference_bundle, backend, ask)
    assert_same(answers, at_least=18)
    right = sum(answer.text == sample.answer for answer, sample in zip(answers[1], samples, strict=True))
    assert right == len(samples)


def test_a_hundred_questions_of_easy_vqa_in_batches(reference_bundle: Path, backend: str) -> None:
    pytest.importorskip("easy_vqa")
    from edgevqa.evaluation.datasets.registry import open_dataset

    samples = [sample for sample, _ in zip(open_dataset("easy-vqa:test"), range(100), strict=False)]

    def ask(pipeline: Pipeline) -> list[Answer]:
        return pipeline.answer_pairs([(sample.image, sample.question) for sample in samples])

    assert_same(on_both(reference_bundle, backend, ask), at_least=100)


def test_logits_and_states_are_within_a_thousandth(reference_bundle: Path, backend: str) -> None:
    """Each graph, on what ONNX Runtime gave the one before it."""
    from edgevqa.export.samples import PICTURES, sample_questions

    sample = sample_questions()[0]
    recorded: Recorded = []
    with Pipeline.load(reference_bundle, backend="onnxruntime", threads=1) as pipeline:
        record(pipeline, recorded)
        pipeline.answer(PICTURES / sample.image, sample.question)
        with Pipeline.load(reference_bundle, backend=backend, threads=1) as other:
            for graph, inputs in recorded:
                wanted = pipeline.graphs.sessions[graph].run(inputs)
                found = other.graphs.sessions[graph].run(inputs)
                assert list(found) == list(wanted)
                for name, tensor in wanted.items():
                    np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=1e-3, err_msg=name)
    assert {graph for graph, _ in recorded} == set(pipeline.graphs.sessions)


def record(pipeline: Pipeline, recorded: Recorded) -> None:
    """Keep a copy of every graph's inputs from now on."""
    run = pipeline.graphs.run

    def watched(name: str, inputs: Mapping[str, Tensor | Array], *, stage: str | None = None) -> dict[str, Tensor]:
        copies = {
            key: np.array(value) if isinstance(value, np.ndarray) else value.numpy() for key, value in inputs.items()
        }
        recorded.append((name, copies))
        return run(name, inputs, stage=stage)

    pipeline.graphs.run = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("fused", [True, False])
def test_batches_beams_choices_and_streams(
    backend: str, fused: bool, toy_bundle: Path, plain_toy_bundle: Path, pictures: list[np.ndarray]
) -> None:
    questions = ["what color is the ball", "how many dogs are there", "is it"]

    def ask(pipeline: Pipeline) -> list[Answer]:
        stream = pipeline.stream(pictures[0], questions[1])
        return [
            *pipeline.answer(pictures[0], questions),
            *pipeline.answer_pairs(list(zip(pictures, questions, strict=True))),
            pipeline.answer(pictures[1], questions[0], num_beams=3),
            pipeline.answer(pictures[2], questions[1], choices=["red", "two", "no"]),
            stream.answer,
        ]

    assert_same(on_both(toy_bundle if fused else plain_toy_bundle, backend, ask), at_least=9)


def test_an_answer_does_not_depend_on_its_neighbours(
    backend: str, toy_bundle: Path, pictures: list[np.ndarray]
) -> None:
    questions = ["what color is the ball", "is it", "how many dogs are there and the ball"]
    with Pipeline.load(toy_bundle, backend=backend, threads=1) as pipeline:
        together = pipeline.answer(pictures[0], questions)
        for question, one in zip(questions, together, strict=True):
            pipeline.clear_caches()
            alone = pipeline.answer(pictures[0], question)
            assert alone.tokens == one.tokens
            assert alone.log_probability == pytest.approx(one.log_probability, abs=1e-4)
