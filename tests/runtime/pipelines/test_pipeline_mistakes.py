"""The pipeline on the toy model: wrong input, wrong options, buffers filled again, and what was closed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevqa.runtime import Answer, Pipeline
from edgevqa.runtime.errors import BundleError, ConfigError, EdgeVQAError, ImageError, InputError, QuestionError
from edgevqa.runtime.pipelines.encoder_decoder import EncoderDecoderFlow

QUESTIONS = ["What color is the ball?", "how many dogs are there", "is it red?"]


@pytest.fixture(scope="module")
def pipeline(toy_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(toy_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def fresh(pipeline: Pipeline) -> None:
    pipeline.clear_caches()
    pipeline.statistics.reset()


def told(answers: list[Answer]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(answer.question, answer.text, answer.tokens) for answer in answers]


def test_wrong_questions_and_pictures(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    with pytest.raises(QuestionError):
        pipeline.answer(pictures[0], " ... ")
    with pytest.raises(QuestionError):
        pipeline.answer(pictures[0], [QUESTIONS[0], 5])  # type: ignore[list-item]
    with pytest.raises(QuestionError, match="None; expected a string"):
        pipeline.answer(pictures[0], None)  # type: ignore[call-overload]
    with pytest.raises(ImageError):
        pipeline.answer("absent.png", QUESTIONS[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 5000),
        ("max_new_tokens", 1.5),
        ("num_beams", 0),
        ("num_beams", True),
        ("beams", 2),
    ],
)
def test_wrong_options_of_a_call(pipeline: Pipeline, pictures: list[np.ndarray], name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(ConfigError, match=name):
        pipeline.answer(pictures[0], QUESTIONS[0], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"threads": -1}, "threads"),
        ({"trunk_cache_mb": 1.5}, "trunk_cache_mb"),
        ({"threads": True}, "threads"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_pixels": "many"}, "max_pixels"),
        ({"precision": 8}, "precision"),
        ({"backend": None}, "backend"),
        ({"check": "no"}, "check"),
        ({"provider_options": ["a"]}, "provider_options"),
        ({"provider_options": {"device_id": 0}}, "provider_options"),
        ({"colour": "red"}, "colour; expected precision, backend"),
        ({"backend": "warp"}, "'warp'"),
    ],
)
def test_wrong_options_of_loading(toy_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline.load(toy_bundle, **options)


def test_a_precision_that_the_bundle_lacks(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="no variant 'int8'; it has fp32"):
        Pipeline.load(toy_bundle, precision="int8")


def test_a_bundle_for_a_pipeline_of_the_future(make_toy: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"'mind_reading'.*encoder_decoder.*Upgrade"):
        Pipeline.load(make_toy(pipeline="mind_reading"))


def test_a_decoder_with_a_fixed_capacity(
    make_toy: Callable[..., Path], pipeline: Pipeline, pictures: list[np.ndarray]
) -> None:
    with Pipeline.load(make_toy(capacity=7)) as fixed:
        for picture, question in itertools.product(pictures, QUESTIONS):
            assert told([fixed.answer(picture, question)]) == told([pipeline.answer(picture, question)])
        with pytest.raises(ConfigError, match="at most 7"):
            fixed.answer(pictures[0], QUESTIONS[0], max_new_tokens=8)


def test_whole_numbers_of_numpy_are_whole_numbers(toy_bundle: Path, pictures: list[np.ndarray]) -> None:
    options: dict[str, Any] = {"max_batch": np.int64(2), "threads": np.int32(1)}
    with Pipeline.load(toy_bundle, **options) as pipeline:
        assert type(pipeline.options.max_batch) is int
        tokens: Any = np.int64(2)
        assert len(pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=tokens).tokens) <= 2


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_buffer_that_is_filled_again_is_another_picture(toy_bundle: Path, tmp_path: Path, max_batch: int) -> None:
    frames = list(np.random.default_rng(1).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8))
    buffer, path = np.zeros_like(frames[0]), tmp_path / "frame.png"

    def camera() -> Iterator[tuple[np.ndarray, str]]:
        for frame in frames:
            buffer[:] = frame
            yield buffer, QUESTIONS[0]

    def recorder() -> Iterator[tuple[Path, str]]:
        for frame in frames:
            Image.fromarray(frame).save(path)
            yield path, QUESTIONS[0]

    with Pipeline.load(toy_bundle, max_batch=max_batch) as pipeline:
        expected = [pipeline.answer(frame, QUESTIONS[0]).log_probability for frame in frames]
        for source in (camera(), recorder()):
            found = [answer.log_probability for answer in pipeline.answer_pairs(source)]
            assert found == pytest.approx(expected, abs=1e-5)


def test_one_call_runs_the_trunk_once_also_without_a_cache(toy_bundle: Path, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(toy_bundle, trunk_cache_mb=0, max_batch=3) as pipeline:
        pipeline.answer(pictures[0], (QUESTIONS * 7)[:20])
        assert pipeline.statistics.runs["vision_trunk"] == 1


def test_a_wrong_question_is_found_before_any_is_answered(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    questions = [*QUESTIONS * 4, "..."]
    with pytest.raises(QuestionError):
        pipeline.answer(pictures[0], questions)
    with pytest.raises(QuestionError):
        pipeline.answer_pairs([(pictures[0], question) for question in questions])
    assert set(pipeline.statistics.runs) == {"tokenize"}


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_failed_never_becomes_an_answer(
    toy_bundle: Path, pictures: list[np.ndarray], pieces: int
) -> None:
    pipeline = Pipeline.load(toy_bundle)
    stream = pipeline.stream(pictures[0], QUESTIONS[0])
    for _ in range(pieces):
        next(stream)
    pipeline.close()
    for _ in range(2):
        with pytest.raises(EdgeVQAError, match="was closed"):
            next(stream)
        with pytest.raises(EdgeVQAError, match="was closed"):
            _ = stream.answer


def test_a_closed_pipeline_says_so(toy_bundle: Path, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(toy_bundle) as pipeline:
        pipeline.answer(pictures[0], QUESTIONS[0])
        flow = pipeline._flow
        assert isinstance(flow, EncoderDecoderFlow)
        assert len(flow._image_side._pictures) == 1
    pipeline.close()
    assert len(flow._image_side._pictures) == len(flow._image_side._questions) == 0
    calls: list[Callable[[], object]] = [
        lambda: pipeline.answer(pictures[0], QUESTIONS[0]),
        lambda: pipeline.stream(pictures[0], QUESTIONS[0]),
        pipeline.warm_up,
        pipeline.__enter__,
    ]
    for call in calls:
        with pytest.raises(EdgeVQAError, match=r"^The pipeline was closed; load it again\.$"):
            call()
