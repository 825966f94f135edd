"""The pipeline on the toy model: reuse is exact, batches do not mix, options and errors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgevqa.runtime import Answer, Pipeline
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.caches import picture_key
from edgevqa.runtime.decoding import beam_search
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.pipelines.base import AnswerOptions, Pair, Picture
from edgevqa.runtime.pipelines.encoder_decoder import EncoderDecoderFlow
from tests.runtime.pipelines.conftest import write_toy

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


def test_the_answer_and_what_it_says_about_itself(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    answer = pipeline.answer(pictures[0], QUESTIONS[0])
    assert answer.question == QUESTIONS[0]
    assert answer.text
    assert 1 <= len(answer.tokens) <= 6
    assert 0 < answer.confidence <= 1
    assert answer.confidence == pytest.approx(np.exp(answer.log_probability))
    assert answer.scores is None
    assert answer.truncated_answer, "the toy seldom ends"
    assert not answer.truncated_question
    stages = {"load_image", "tokenize", "preprocess", "vision_trunk", "question_encoder", "vision_fusion"}
    stages |= {"projector", "language_encoder", "language_decoder", "total"}
    assert set(answer.timing_ms) == stages
    parts = sum(value for stage, value in answer.timing_ms.items() if stage != "total")
    assert 0 < parts <= answer.timing_ms["total"]


def test_an_answer_that_ends_was_not_cut(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = write_toy(tmp_path / "toy")
    bundle = Bundle.open(path)
    assert bundle.manifest.generation is not None
    with Pipeline.load(path, backend="onnxruntime") as pipeline:
        whole = pipeline.answer(pictures[0], QUESTIONS[0]).tokens
    end = next(token for place, token in enumerate(whole) if place and token not in whole[:place])
    ends = msgspec.structs.replace(bundle.manifest.generation, more_eos_token_ids=[end])
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, generation=ends))
    with Pipeline.load(path, backend="onnxruntime") as pipeline:
        answer = pipeline.answer(pictures[0], QUESTIONS[0])
        assert not answer.truncated_answer
        most = len(answer.tokens) - 1
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=most).truncated_answer
        assert pipeline.stream(pictures[0], QUESTIONS[0], max_new_tokens=most).answer.truncated_answer
        assert not pipeline.answer(pictures[0], QUESTIONS[0], choices=["red", "blue"]).truncated_answer


def test_the_answer_depends_on_picture_and_question(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    pairs = list(itertools.product(pictures, QUESTIONS))
    answers = pipeline.answer_pairs(pairs)
    assert len({answer.log_probability for answer in answers}) == len(pairs)
    assert len({answer.text for answer in answers}) >= 3


def test_a_second_question_does_not_run_the_trunk_and_its_answer_is_the_same(
    pipeline: Pipeline, pictures: list[np.ndarray]
) -> None:
    alone = []
    for question in QUESTIONS:
        pipeline.clear_caches()
        alone.append(pipeline.answer(pictures[0], question))
    pipeline.clear_caches()
    pipeline.statistics.reset()
    reused = [pipeline.answer(pictures[0].copy(), question) for question in QUESTIONS]
    assert pipeline.statistics.runs["vision_trunk"] == 1
    assert pipeline.statistics.runs["preprocess"] == 1
    assert pipeline.statistics.runs["vision_fusion"] == 3
    assert (pipeline.statistics.image_hits, pipeline.statistics.image_misses) == (2, 1)
    assert told(reused) == told(alone)
    assert [answer.log_probability for answer in reused] == [answer.log_probability for answer in alone]
    assert "vision_trunk" not in reused[1].timing_ms


def test_the_same_question_on_another_picture_is_not_encoded_again(
    pipeline: Pipeline, pictures: list[np.ndarray]
) -> None:
    alone = []
    for picture in pictures:
        pipeline.clear_caches()
        alone.append(pipeline.answer(picture, QUESTIONS[0]))
    pipeline.clear_caches()
    pipeline.statistics.reset()
    reused = [pipeline.answer(picture, QUESTIONS[0]) for picture in pictures]
    assert pipeline.statistics.runs["question_encoder"] == 1
    assert (pipeline.statistics.question_hits, pipeline.statistics.question_misses) == (2, 1)
    assert pipeline.statistics.runs["vision_trunk"] == 3
    assert told(reused) == told(alone)
    assert [answer.log_probability for answer in reused] == [answer.log_probability for answer in alone]


def test_one_changed_pixel_is_another_picture(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    before = pipeline.answer(pictures[1], QUESTIONS[0])
    changed = pictures[1].copy()
    changed[3, 3] = 255 - changed[3, 3]
    after = pipeline.answer(changed, QUESTIONS[0])
    assert pipeline.statistics.runs["vision_trunk"] == 2
    assert before.log_probability != after.log_probability


@pytest.mark.parametrize("max_batch", [1, 2, 8])
@pytest.mark.parametrize("caches", [0, 8])
@pytest.mark.parametrize("kind", ["toy_bundle", "plain_toy_bundle"])
def test_every_answer_of_a_padded_batch_equals_the_answer_alone(
    request: pytest.FixtureRequest, pictures: list[np.ndarray], kind: str, max_batch: int, caches: int
) -> None:
    path: Path = request.getfixturevalue(kind)
    pairs = list(itertools.product(pictures, QUESTIONS))
    pairs += [(pictures[0], QUESTIONS[0]), (pictures[2], QUESTIONS[1])]
    with Pipeline.load(path, max_batch=1, trunk_cache_mb=0, question_cache_mb=0) as single:
        alone = [single.answer(picture, question) for picture, question in pairs]
    options: dict[str, Any] = {"max_batch": max_batch, "trunk_cache_mb": caches, "question_cache_mb": caches}
    with Pipeline.load(path, **options) as batched:
        for _ in range(2):  # the second time from the caches, if there are any
            together = batched.answer_pairs(pairs)
            assert told(together) == told(alone)
            for one, other in zip(together, alone, strict=True):
                assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        if caches:
            assert batched.statistics.image_misses == 3
            assert batched.statistics.runs["preprocess"] <= 3


def test_several_questions_about_one_picture_share_a_batch(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    answers = pipeline.answer(pictures[0], QUESTIONS)
    assert [answer.question for answer in answers] == QUESTIONS
    assert pipeline.statistics.runs["language_encoder"] == 1
    assert pipeline.statistics.runs["vision_trunk"] == 1
    assert pipeline.answer(pictures[0], []) == []


def test_without_fusion_the_image_embeddings_are_computed_once(
    plain_toy_bundle: Path, pictures: list[np.ndarray]
) -> None:
    with Pipeline.load(plain_toy_bundle) as plain:
        first = plain.answer(pictures[0], QUESTIONS)
        again = [plain.answer(pictures[0], question) for question in QUESTIONS]
        assert plain.statistics.runs["vision_trunk"] == plain.statistics.runs["projector"] == 1
        assert "vision_fusion" not in plain.statistics.runs
    assert told(first) == told(again)


def test_a_cache_of_nothing_keeps_nothing(toy_bundle: Path, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(toy_bundle, trunk_cache_mb=0) as pipeline:
        for _ in range(2):
            pipeline.answer(pictures[0], QUESTIONS[0])
        assert pipeline.statistics.runs["vision_trunk"] == 2
        assert pipeline.statistics.runs["question_encoder"] == 1


def test_every_source_of_a_picture_gives_the_same_answer(
    pipeline: Pipeline, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(pictures[0]).save(path)
    sources: list[Any] = [
        pictures[0],
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        Image.fromarray(pictures[0]),
    ]
    answers = pipeline.answer_pairs((source, QUESTIONS[0]) for source in sources)
    assert len({answer.log_probability for answer in answers}) == 1
    assert pipeline.statistics.runs["vision_trunk"] == 1


def test_a_file_is_read_once_for_many_questions(pipeline: Pipeline, pictures: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(pictures[0]).save(path)
    assert len(pipeline.answer(path, QUESTIONS * 8)) == 24
    assert pipeline.statistics.runs["load_image"] == 1


def test_max_new_tokens_counts_the_end_token(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    whole = pipeline.answer(pictures[0], QUESTIONS[0])
    assert len(whole.tokens) >= 3
    for limit in range(1, 5):
        answer = pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=limit)
        assert answer.tokens == whole.tokens[:limit]


def decoded_directly(pipeline: Pipeline, picture: np.ndarray, question: str, tokens: tuple[int, ...]) -> float:
    """The log-probability of an answer through `choices`, one row: no beams, no batch."""
    text = " ".join(pipeline._codec.decode([token]) for token in tokens if token != 1)
    answer = pipeline.answer(picture, question, choices=[text])
    return answer.log_probability * len(answer.tokens)


def test_beams_give_the_likelihood_of_what_they_found(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    better = 0
    for picture, question in itertools.product(pictures, QUESTIONS):
        greedy = pipeline.answer(picture, question)
        beams = pipeline.answer(picture, question, num_beams=4)
        better += beams.log_probability > greedy.log_probability + 1e-6
        if beams.tokens[-1] == 1:
            total = decoded_directly(pipeline, picture, question, beams.tokens)
            assert beams.log_probability * len(beams.tokens) == pytest.approx(total, abs=1e-5)
    assert better >= 2


class PrefixDecoder:
    """Runs the whole prefix of every row again at each step, through a new cache each time."""

    def __init__(self, flow: EncoderDecoderFlow, pair: Pair, rows: int) -> None:
        self.rows = rows
        self._flow = flow
        self._encoded = flow._encode([pair])
        self._prefix = np.zeros((rows, 0), dtype=np.int64)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self._prefix = np.concatenate([self._prefix, tokens[:, None]], axis=1)
        fresh = self._flow._decoder(self._encoded, [()], self.rows, 8)
        return [fresh.step(column) for column in self._prefix.T][-1]

    def reorder(self, rows: np.ndarray) -> None:
        self._prefix = self._prefix[rows]


@pytest.mark.parametrize("width", [2, 4])
def test_beams_with_the_cache_find_what_they_find_without_it(
    pipeline: Pipeline, pictures: list[np.ndarray], width: int
) -> None:
    flow = pipeline._flow
    assert isinstance(flow, EncoderDecoderFlow)
    for picture, question in itertools.product(pictures, QUESTIONS):
        pair = Pair(Picture(picture, picture_key(picture)), pipeline.questions.question(question))
        expected = beam_search(PrefixDecoder(flow, pair, width), flow._limits(6), width=width)[0]
        found = pipeline.answer(picture, question, num_beams=width)
        assert found.tokens == expected.tokens
        assert found.log_probability == pytest.approx(expected.mean_log_probability, abs=1e-6)


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beams_in_a_batch_find_what_they_find_alone(
    toy_bundle: Path, pictures: list[np.ndarray], num_beams: int
) -> None:
    pairs = list(itertools.product(pictures, QUESTIONS))
    with Pipeline.load(toy_bundle, max_batch=12) as pipeline:
        together = pipeline.answer_pairs(pairs, num_beams=num_beams)
        alone = [pipeline.answer(picture, question, num_beams=num_beams) for picture, question in pairs]
    assert told(together) == told(alone)


def test_choices_are_scored_and_the_likeliest_is_the_answer(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    choices = ["yes", " no ", "red of cat", "two", "yes", "blue ball left of the cat"]
    answer = pipeline.answer(pictures[0], QUESTIONS[0], choices=choices)
    assert answer.scores is not None
    assert list(answer.scores) == ["yes", "no", "red of cat", "two", "blue ball left of the cat"]
    assert sum(answer.scores.values()) == pytest.approx(1.0)
    assert answer.text == max(answer.scores, key=lambda choice: answer.scores[choice] if answer.scores else 0)
    assert answer.confidence == answer.scores[answer.text]
    totals = {}
    for choice in answer.scores:
        one = pipeline.answer(pictures[0], QUESTIONS[0], choices=[choice])
        assert one.scores == {choice: 1.0}
        totals[choice] = one.log_probability * len(one.tokens)
    weights = np.exp(np.array(list(totals.values())))
    np.testing.assert_allclose(list(answer.scores.values()), weights / weights.sum(), atol=1e-5)


def test_more_choices_than_rows_that_run_at_once(toy_bundle: Path, pictures: list[np.ndarray]) -> None:
    choices = ["yes", "no", "red", "blue", "green", "two dogs", "a cat on the left"]
    pairs = list(itertools.product(pictures[:2], QUESTIONS))
    found = []
    for max_batch in (1, 3, 100):
        with Pipeline.load(toy_bundle, max_batch=max_batch) as pipeline:
            found.append([answer.scores for answer in pipeline.answer_pairs(pairs, choices=choices)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize("choices", [[], ["yes", " "], "yes", 5, ["yes", 3], ["yes", None]])
def test_choices_that_are_none(pipeline: Pipeline, pictures: list[np.ndarray], choices: Any) -> None:
    with pytest.raises(ConfigError, match="choices"):
        pipeline.answer(pictures[0], QUESTIONS[0], choices=choices)


def test_choices_that_the_model_cannot_tell_apart(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="'zebra' and 'lion' are the same tokens"):
        pipeline.answer(pictures[0], QUESTIONS[0], choices=["yes", "zebra", "lion"])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"choices": ["red", "blue"]}, {"max_new_tokens": 2}])
def test_the_pieces_of_a_stream_are_the_answer(
    pipeline: Pipeline, pictures: list[np.ndarray], options: AnswerOptions
) -> None:
    whole = pipeline.answer(pictures[0], QUESTIONS[0], **options)
    stream = pipeline.stream(pictures[0], QUESTIONS[0], **options)
    pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert all(pieces)
    assert told([stream.answer]) == told([whole])
    assert stream.answer.confidence == pytest.approx(whole.confidence)
    if not options:
        assert len(pieces) >= 3


def test_the_answer_of_a_stream_needs_no_iteration(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    whole = pipeline.answer(pictures[0], QUESTIONS[1])
    assert pipeline.stream(pictures[0], QUESTIONS[1]).answer.tokens == whole.tokens
    half = pipeline.stream(pictures[0], QUESTIONS[1])
    next(half)
    assert half.answer.tokens == whole.tokens
    with pytest.raises(StopIteration):
        next(half)


def test_streams_may_run_beside_each_other(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    streams = [pipeline.stream(picture, QUESTIONS[0]) for picture in pictures]
    for _ in itertools.zip_longest(*streams):
        pass
    assert told([stream.answer for stream in streams]) == told([pipeline.answer(p, QUESTIONS[0]) for p in pictures])


def test_threads_may_share_a_pipeline(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    pairs = list(itertools.product(pictures, QUESTIONS))
    expected = told(pipeline.answer_pairs(pairs))
    found: dict[int, list[Answer]] = {}

    def work(number: int) -> None:
        found[number] = pipeline.answer_pairs(pairs)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(told(answers) == expected for answers in found.values())
    assert len(found) == 4


def test_warming_up_runs_every_graph_and_leaves_nothing(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    seen: list[str] = []
    graphs = pipeline._graphs
    for name, session in graphs.sessions.items():
        original = session.run

        def note(inputs: object, name: str = name, original: Callable[..., object] = original) -> object:
            seen.append(name)
            return original(inputs)

        session.run = note  # type: ignore[method-assign, assignment]
    try:
        pipeline.warm_up()
    finally:
        for session in graphs.sessions.values():
            del session.run
    assert set(seen) == set(graphs.sessions)
    assert pipeline.statistics.runs == {}
    pipeline.answer(pictures[0], QUESTIONS[0])
    assert (pipeline.statistics.image_hits, pipeline.statistics.question_hits) == (0, 0)


def test_a_long_question_is_cut_and_the_answer_says_so(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    answer = pipeline.answer(pictures[0], "what color is the ball " * 2000)
    assert answer.truncated_question
    assert pipeline.answer(pictures[0], "what zebra is it").unknown_tokens == 1
