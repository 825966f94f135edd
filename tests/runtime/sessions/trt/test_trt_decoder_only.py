"""A decoder-only model on the strict simulator: prompts in chunks, kept prefixes and single tokens, as on ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.pipelines.base import Answer
from edgevqa.runtime.sessions.trt.session import EngineSession
from tests.runtime.pipelines.wordless_toys import write_captioner

QUESTIONS = ["what color is the ball", "how many dogs are there", "is it red ?", "the ball"]
KINDS: list[dict[str, Any]] = [
    {},
    {"processor": "toy"},
    {"processor": "toy", "grid": True},
    {"fused": True},
]
AXES = {"width": (8, 8, 16)}

Make = Callable[..., Path]


def same(a: Answer | list[Answer], b: Answer | list[Answer]) -> None:
    for one, other in zip(a if isinstance(a, list) else [a], b if isinstance(b, list) else [b], strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def decoder(pipeline: Pipeline) -> EngineSession:
    session = pipeline.graphs.sessions["language_decoder"]
    assert isinstance(session, EngineSession)
    return session


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("target", ["server-trt10", "rtx"])
def test_answers_are_those_of_onnx_runtime(
    simulated: Any,
    engines: Make,
    make_decoder_only: Make,
    pictures: list[np.ndarray],
    settings: dict[str, Any],
    target: str,
) -> None:
    """Alone (first, from the kept prefix, and replayed), in batches, with beams, with choices, as a stream."""
    path = engines(make_decoder_only(**settings), target, axes=AXES)
    backend = {"rtx": "tensorrt-rtx"}.get(target, "tensorrt")
    pairs = list(itertools.product(pictures, QUESTIONS))
    with (
        Pipeline.load(path, backend="onnxruntime", threads=1, max_batch=4) as ort,
        Pipeline.load(path, backend=backend, max_batch=4) as trt,
    ):
        for _ in range(3):
            for pair in pairs:
                same(ort.answer(*pair), trt.answer(*pair))
            same(ort.answer_pairs(pairs), trt.answer_pairs(pairs))
        for beams in (2, 3):
            same(ort.answer_pairs(pairs, num_beams=beams), trt.answer_pairs(pairs, num_beams=beams))
        choices = ["yes", "no", "red of cat", "two", "blue ball"]
        one, other = (each.answer(pictures[2], QUESTIONS, choices=choices) for each in (ort, trt))
        same(one, other)
        assert [each.scores for each in one] == [pytest.approx(each.scores, abs=1e-4) for each in other]
        stream = trt.stream(pictures[1], QUESTIONS[0])
        assert "".join(stream) == stream.answer.text
        same(ort.answer(pictures[1], QUESTIONS[0]), stream.answer)


def test_single_tokens_are_captured_and_prompts_are_not(
    simulated: Any, engines: Make, decoder_only_bundle: Path, pictures: list[np.ndarray]
) -> None:
    """Prompts of many lengths would push the launches of single tokens out of what is kept."""
    with Pipeline.load(engines(decoder_only_bundle), backend="tensorrt") as pipeline:
        traffic = decoder(pipeline).traffic

        def ask() -> list[Answer]:
            pipeline.clear_caches()
            return [pipeline.answer(pictures[0], question, max_new_tokens=5) for question in QUESTIONS]

        for _ in range(2):
            ask()
        before = traffic.launches, traffic.replays
        answers = ask()
        tokens = sum(len(answer.tokens) - 1 for answer in answers)  # what the prompt led to needs no launch of its own
        assert tokens >= 4
        assert traffic.replays - before[1] == tokens + 1, "every token, and the picture, which is one shape"
        assert traffic.launches - before[0] == 1 + len(QUESTIONS), "the prefix, and each question"
        assert simulated.cuda.calls["cudaStreamBeginCapture"] == 2


def test_a_kept_prefix_and_its_copies_stay_on_the_gpu(
    simulated: Any, engines: Make, decoder_only_bundle: Path, pictures: list[np.ndarray]
) -> None:
    with Pipeline.load(engines(decoder_only_bundle), backend="tensorrt") as pipeline:
        traffic = decoder(pipeline).traffic
        pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=1)
        before = traffic.downloads
        pipeline.answer(pictures[0], QUESTIONS[1], max_new_tokens=1)
        assert traffic.downloads - before == 1, "the logits"
        before = traffic.downloads
        pipeline.answer(pictures[0], QUESTIONS[1], max_new_tokens=1, num_beams=2)
        assert traffic.downloads - before == 1


def test_the_capacity_of_the_engine_is_what_prompt_and_answer_have(
    simulated: Any, engines: Make, decoder_only_bundle: Path, pictures: list[np.ndarray]
) -> None:
    path = engines(decoder_only_bundle, max_prompt=12, max_new_tokens=2)
    with Pipeline.load(path, backend="tensorrt") as pipeline:
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=2).tokens
        with pytest.raises(ConfigError, match="take 17 places together, but the model has 14"):
            pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=5)


def test_a_question_longer_than_the_profiles_take_is_answered_with_what_to_build(
    simulated: Any, engines: Make, decoder_only_bundle: Path, pictures: list[np.ndarray]
) -> None:
    path = engines(decoder_only_bundle, axes={"length": (1, 4, 7)})
    with (
        Pipeline.load(path, backend="tensorrt") as pipeline,
        pytest.raises(InputError, match=r"takes length of .*7 \(input_ids\), but got 11.*--max-prompt 11"),
    ):
        pipeline.answer(pictures[0], " ".join(["ball"] * 10))


@pytest.mark.parametrize("target", ["server-trt10", "rtx"])
def test_captions_with_prompts_are_those_of_onnx_runtime(
    simulated: Any, engines: Make, tmp_path: Path, pictures: list[np.ndarray], target: str
) -> None:
    """Prompts of many lengths, read at once; the picture's keys and values stay where they are."""
    path = engines(write_captioner(tmp_path / "captioner"), target)
    backend = {"rtx": "tensorrt-rtx"}.get(target, "tensorrt")
    pairs = list(itertools.product(pictures, ["", "the", "red of cat", "two left of the cat with a ball"]))
    with (
        Pipeline.load(path, backend="onnxruntime", threads=1, max_batch=4) as ort,
        Pipeline.load(path, backend=backend, max_batch=4) as trt,
    ):
        for _ in range(2):
            for pair in pairs:
                same(ort.answer(*pair), trt.answer(*pair))
        same(ort.answer_pairs(pairs), trt.answer_pairs(pairs))
        same(ort.answer_pairs(pairs, num_beams=2), trt.answer_pairs(pairs, num_beams=2))
        traffic = decoder(trt).traffic
        before = traffic.launches
        trt.answer(pictures[0], "red of cat", max_new_tokens=4)
        replayed = target != "rtx"  # whose runtime has no launches of its own to keep here
        assert (traffic.launches - before == 1) == replayed, "the prompt; tokens are replayed"
