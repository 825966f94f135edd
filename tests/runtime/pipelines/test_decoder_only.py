"""The decoder-only flow on its toy: kept prefixes, chunks, padding on the left, beams and choices change no answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime import Answer, Pipeline
from edgevqa.runtime.decoding import Generated, Limits, score_answers, search
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.sessions.base import Array, Tensor
from tests.runtime.pipelines.conftest import HEAD, HEADS, TOKENS
from tests.runtime.pipelines.decoder_only_toy import IMAGE_TOKEN, LAYERS, PLACES

QUESTIONS = ["what color is the ball", "how many dogs are there", "is it red ?", "the ball"]
KINDS: list[dict[str, Any]] = [
    {},
    {"capacity": 48},
    {"processor": "toy"},
    {"processor": "toy", "grid": True},
    {"fused": True},
]


@pytest.fixture
def pipeline(decoder_only_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(decoder_only_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture
def wide(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Pictures among which one is wide, and one comes twice."""
    return [*pictures, pictures[0].copy()]


def told(answers: Sequence[Answer]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(answer.question, answer.text, answer.tokens) for answer in answers]


class Uncached:
    """The decoder graph on whole sequences: prompt and tokens in one chunk, without a past, without padding."""

    def __init__(self, pipeline: Pipeline, picture: np.ndarray, question: str, rows: int = 1) -> None:
        self.rows = rows
        self._session = pipeline.graphs.sessions["language_decoder"]
        asked = pipeline.questions.question(question)
        spec = pipeline.manifest.image
        assert isinstance(spec, ImageSpec)
        prepared = prepare(picture, spec)
        self._embeds = self._embed(pipeline, prepared.inputs, asked.ids)
        slots = prepared.expansion or (IMAGE_TOKEN,) * self._embeds.shape[1]
        cut = asked.ids.index(IMAGE_TOKEN)
        self.prompt = [*asked.ids[:cut], *slots, *asked.ids[cut + 1 :]]
        self._grid = prepared.grid
        self._tokens = np.zeros((rows, 0), dtype=np.int64)
        self._started = False

    def _embed(self, pipeline: Pipeline, inputs: dict[str, Any], ids: tuple[int, ...]) -> np.ndarray:
        graphs = pipeline.graphs.sessions
        if "vision" in graphs:
            return graphs["vision"].run(inputs)["image_embeds"].numpy()
        row, mask = np.array([ids]), np.ones((1, len(ids)), np.int64)
        states = graphs["question_encoder"].run({"input_ids": row, "attention_mask": mask})["question_states"]
        trunk = graphs["vision_trunk"].run(inputs)["trunk_states"]
        fused: dict[str, Any] = {"trunk_states": trunk, "question_states": states, "attention_mask": mask}
        return graphs["vision_fusion"].run(fused)["image_embeds"].numpy()

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits after the prompt, then after every token that was fed; what is fed first is the start token."""
        if self._started:
            self._tokens = np.concatenate([self._tokens, tokens[:, None]], axis=1)
        self._started = True
        ids = np.concatenate([np.repeat([self.prompt], self.rows, axis=0), self._tokens], axis=1)
        images = (ids == IMAGE_TOKEN) & (np.arange(ids.shape[1]) < len(self.prompt))  # one may be generated too
        past = np.zeros((self.rows, HEADS, 1, HEAD), dtype=np.float32)
        cache: dict[str, Array] = {f"past_{kind}.{layer}": past for kind in ("key", "value") for layer in range(LAYERS)}
        inputs: dict[str, Tensor | Array] = {
            "input_ids": ids,
            "image_embeds": np.repeat(self._embeds, self.rows, axis=0),
            "image_index": np.where(images, np.cumsum(images, axis=1) - 1, -1),
            "position_ids": self._positions(ids),
            "past_attention_mask": np.zeros((self.rows, 1), dtype=np.int64),
            "attention_mask": np.ones_like(ids),
        }
        inputs.update(cache)
        return self._session.run(inputs)["logits"].numpy()

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        if self._grid is None:
            return np.repeat([np.arange(ids.shape[1])], self.rows, axis=0)
        _, height, width = self._grid
        first = self.prompt.index(IMAGE_TOKEN)
        places = [[place] * 3 for place in range(first)]
        places += [[first, first + y, first + x] for y in range(height) for x in range(width)]
        following = first + max(height, width)
        places += [[following + place] * 3 for place in range(ids.shape[1] - len(places))]
        return np.repeat(np.array(places).T[:, None], self.rows, axis=1)

    def reorder(self, rows: np.ndarray) -> None:
        self._tokens = self._tokens[rows]


def expected(pipeline: Pipeline, picture: np.ndarray, question: str, beams: int = 1, tokens: int = 6) -> Generated:
    limits = Limits(start_token_id=3, eos_token_id=1, pad_token_id=0, max_new_tokens=tokens)
    return search(Uncached(pipeline, picture, question, beams), limits, num_beams=beams)[0]


def same(answer: Answer, generated: Generated) -> None:
    assert answer.tokens == generated.tokens
    assert answer.log_probability == pytest.approx(generated.mean_log_probability, abs=1e-4)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_every_answer_is_that_of_the_whole_sequence(
    make_decoder_only: Callable[..., Path], wide: list[np.ndarray], settings: dict[str, Any]
) -> None:
    """Alone, from the kept prefix, and in batches of pictures and questions of other lengths."""
    path = make_decoder_only(**settings)
    reference = path if settings.get("capacity") is None else make_decoder_only()
    pairs = list(itertools.product(wide, QUESTIONS))
    with Pipeline.load(reference, threads=1) as whole:
        wanted = [expected(whole, *pair) for pair in pairs]
    assert len({each.total_log_probability for each in wanted[:12]}) == 12, "every picture and question matters"
    assert len({each.tokens for each in wanted}) >= 4
    with Pipeline.load(path, threads=1) as pipeline:
        for _ in range(2):
            for pair, want in zip(pairs, wanted, strict=True):
                same(pipeline.answer(*pair), want)
    for max_batch in (3, 8):
        with Pipeline.load(path, threads=1, max_batch=max_batch) as pipeline:
            for _ in range(2):
                for answer, want in zip(pipeline.answer_pairs(pairs), wanted, strict=True):
                    same(answer, want)


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_find_what_they_find_without_a_cache(
    make_decoder_only: Callable[..., Path], wide: list[np.ndarray], settings: dict[str, Any], beams: int
) -> None:
    path = make_decoder_only(**settings)
    reference = path if settings.get("capacity") is None else make_decoder_only()
    pairs = list(itertools.product(wide[:3], QUESTIONS[:3]))
    with Pipeline.load(reference, threads=1) as whole, Pipeline.load(path, threads=1, max_batch=8) as pipeline:
        alone = [pipeline.answer(*pair, num_beams=beams) for pair in pairs]
        for answer, pair in zip(alone, pairs, strict=True):
            same(answer, expected(whole, pair[0], pair[1], beams=beams))
        assert told(pipeline.answer_pairs(pairs, num_beams=beams)) == told(alone)


def test_a_second_question_reads_the_picture_no_more(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    alone = []
    for question in QUESTIONS:
        pipeline.clear_caches()
        alone.append(pipeline.answer(pictures[0], question, max_new_tokens=1))
    pipeline.clear_caches()
    pipeline.statistics.reset()
    again = [pipeline.answer(pictures[0].copy(), question, max_new_tokens=1) for question in QUESTIONS]
    assert pipeline.statistics.runs["vision"] == pipeline.statistics.runs["preprocess"] == 1
    assert pipeline.statistics.runs["prefill"] == 1 + len(QUESTIONS), "the picture's part, then the questions"
    assert told(again) == told(alone)
    assert [answer.log_probability for answer in again] == [answer.log_probability for answer in alone]


def test_without_room_for_prefixes_each_question_reads_the_picture(
    decoder_only_bundle: Path, pictures: list[np.ndarray]
) -> None:
    with Pipeline.load(decoder_only_bundle, prefix_cache_mb=0) as pipeline:
        found = [pipeline.answer(pictures[0], question, max_new_tokens=1) for question in QUESTIONS]
        assert pipeline.statistics.runs["prefill"] == 2 * len(QUESTIONS)
        assert pipeline.statistics.runs["vision"] == 1
    with Pipeline.load(decoder_only_bundle) as pipeline:
        assert told(found) == told([pipeline.answer(pictures[0], each, max_new_tokens=1) for each in QUESTIONS])


def test_a_prefix_that_depends_on_the_question_is_not_kept(
    make_decoder_only: Callable[..., Path], pictures: list[np.ndarray]
) -> None:
    with Pipeline.load(make_decoder_only(fused=True)) as pipeline:
        for question in QUESTIONS:
            pipeline.answer(pictures[0], question, max_new_tokens=1)
        assert pipeline.statistics.runs["prefill"] == 2 * len(QUESTIONS)
        assert pipeline.statistics.runs["vision_trunk"] == 1


@pytest.mark.parametrize("settings", [{}, {"processor": "toy"}], ids=str)
def test_choices_get_the_likelihoods_of_the_whole_sequence(
    make_decoder_only: Callable[..., Path], pictures: list[np.ndarray], settings: dict[str, Any]
) -> None:
    choices = ["yes", "no", "red of cat", "two", "blue ball left of the cat"]
    with Pipeline.load(make_decoder_only(**settings), threads=1, max_batch=4) as pipeline:
        answers = pipeline.answer(pictures[2], QUESTIONS, choices=choices)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            totals = []
            for choice in choices:
                ids = pipeline._codec.choice(choice)
                limits = Limits(start_token_id=3, eos_token_id=1, pad_token_id=0, max_new_tokens=len(ids))
                totals.append(score_answers(Uncached(pipeline, pictures[2], question), [ids], limits)[0])
            weights = np.exp([each.total_log_probability for each in totals])
            assert answer.scores == pytest.approx(dict(zip(choices, weights / weights.sum(), strict=True)), abs=1e-5)
            assert answer.text == choices[int(np.argmax(weights))]


def test_streams_give_the_answer_in_pieces(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    for question in QUESTIONS:
        stream = pipeline.stream(pictures[1], question)
        pieces = list(stream)
        want = pipeline.answer(pictures[1], question)
        assert "".join(pieces) == stream.answer.text == want.text
        assert stream.answer.tokens == want.tokens
        assert len(pieces) > 1 or len(want.tokens) < 3


def test_an_answer_shorter_than_its_limit_begins_the_same(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    whole = pipeline.answer(pictures[0], QUESTIONS[0])
    for limit in range(1, len(whole.tokens)):
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=limit).tokens == whole.tokens[:limit]


def test_the_longest_context_is_kept_to(make_decoder_only: Callable[..., Path], pictures: list[np.ndarray]) -> None:
    prompt = 3 + TOKENS + len(QUESTIONS[0].split())  # `<s> user ... answer`
    with Pipeline.load(make_decoder_only(max_context=prompt + 4)) as pipeline:
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=4).tokens
        with pytest.raises(ConfigError, match=rf"take {prompt + 5} places together, but the model has {prompt + 4}"):
            pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=5)


def test_a_capacity_that_the_graph_fixes_is_kept_to(
    make_decoder_only: Callable[..., Path], pictures: list[np.ndarray]
) -> None:
    prompt = 3 + TOKENS + len(QUESTIONS[0].split())
    with Pipeline.load(make_decoder_only(capacity=prompt + 2)) as pipeline:
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=2).tokens
        with pytest.raises(ConfigError, match=rf"take {prompt + 3} places together, but the model has {prompt + 2}"):
            pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_too_many_pictures_are_refused_before_they_are_read(
    make_decoder_only: Callable[..., Path], pictures: list[np.ndarray], backend: str
) -> None:
    """Read, their positions would be beyond the decoder's table: an error of the backend, or whatever lies behind it."""
    pytest.importorskip(backend)
    fit = (PLACES - 3 - len(QUESTIONS[0].split()) - 4) // TOKENS
    with Pipeline.load(make_decoder_only(max_context=PLACES, several=True), backend=backend) as pipeline:
        assert pipeline.answer([pictures[0]] * fit, QUESTIONS[0], max_new_tokens=4).tokens
        with pytest.raises(ConfigError, match=rf"take 26\d places together, but the model has {PLACES}.*fewer of them"):
            pipeline.answer([pictures[0]] * (fit + 2), QUESTIONS[0], max_new_tokens=4)
        with pytest.raises(ConfigError, match=r"Ask for a shorter answer, or ask a shorter question"):
            pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=PLACES)


def test_a_table_of_positions_that_is_shorter_than_the_context_is_kept_to(
    make_decoder_only: Callable[..., Path], pictures: list[np.ndarray]
) -> None:
    """A picture with a grid takes fewer positions than places."""
    settings = {"processor": "toy", "grid": True, "max_context": PLACES}
    with Pipeline.load(make_decoder_only(**settings, max_positions=20)) as pipeline:
        assert pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=10).tokens
        with pytest.raises(ConfigError, match=r"take 2\d positions together, but the model has 20"):
            pipeline.answer(pictures[0], QUESTIONS[0], max_new_tokens=12)


def test_an_image_token_in_a_question_is_text(pipeline: Pipeline, pictures: list[np.ndarray]) -> None:
    plain = pipeline.answer(pictures[0], "is the ball red")
    spelled = pipeline.answer(pictures[0], "is the <image> ball red")
    assert spelled.tokens == plain.tokens
    assert spelled.log_probability == plain.log_probability
