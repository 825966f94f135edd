"""The flow `matching` on toy models: every kind of graphs, scores, what is kept, embeddings, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, ConfigError, QuestionError
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.similarity import cosines
from tests.runtime.pipelines.matching_toy import WIDTH, WORDS, write_matching

SOFTMAX = MatchingSpec(scale=20.0, bias=0.0, activation="softmax")
SIGMOID = MatchingSpec(scale=6.0, bias=-3.0, activation="sigmoid")
CLIP: dict[str, dict[str, Any]] = {"image_encoder": {}, "text_encoder": {}}
SIGLIP: dict[str, dict[str, Any]] = {"image_encoder": {}, "text_encoder": {"fixed": True}}
MATCHER: dict[str, dict[str, Any]] = {"vision": {}, "matcher": {}}
ALONE: dict[str, dict[str, Any]] = {"matcher": {"states": False, "outputs": 1, "axis": "batch"}}
BOTH: dict[str, dict[str, Any]] = {
    "vision": {},
    "image_encoder": {"states": True, "vectors": True},
    "text_encoder": {},
    "matcher": {"axis": "batch"},
}
TEXTS = ["a red ball", "two dogs", "is there a cat on the left ?", "blue"]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a toy bundle."""

    def write(graphs: dict[str, dict[str, Any]], matching: MatchingSpec | None = None) -> Path:
        return write_matching(tmp_path / "toy", graphs, matching)

    return write


class Graphs:
    """A bundle's graphs run one by one, on one picture and one text, as a reader of the manifest would."""

    def __init__(self, path: Path) -> None:
        self.bundle = Bundle.open(path)
        self.sessions = {
            name: onnxruntime.InferenceSession(self.bundle.graph_path("fp32", name))
            for name in self.bundle.variant("fp32").graphs
        }
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))

    def run(self, name: str, picture: np.ndarray, text: str) -> np.ndarray:
        spec = self.bundle.manifest.image
        assert spec is not None
        ids = np.array([self.tokenizer.encode(text).ids])
        wanted = {each.name: each.shape for each in self.sessions[name].get_inputs()}
        if wanted.get("input_ids", ["", ""])[1] == WORDS:
            ids = np.pad(ids, ((0, 0), (0, WORDS - ids.shape[1])))
        given: Mapping[str, np.ndarray] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        given = {**given, "pixel_values": prepare(picture, spec).inputs["pixel_values"]}
        if "image_states" in wanted:
            given["image_states"] = self.run("vision", picture, text)
        return np.asarray(self.sessions[name].run(None, {each: given[each] for each in wanted})[0])

    def cosine(self, picture: np.ndarray, text: str) -> float:
        image, words = self.run("image_encoder", picture, text), self.run("text_encoder", picture, text)
        return float((image @ words.T).max())

    def margin(self, picture: np.ndarray, text: str) -> float:
        logits = self.run("matcher", picture, text)[0]
        return float(logits[1] - logits[0]) if len(logits) == 2 else float(logits[0])


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def softmax(values: list[float]) -> np.ndarray:
    shares: np.ndarray = np.exp(np.array(values) - max(values))
    shares /= shares.sum()
    return shares


def test_choices_of_a_dual_encoder_are_ranked_by_softmax(make: Make, pictures: list[np.ndarray]) -> None:
    path = make(CLIP, SOFTMAX)
    graphs = Graphs(path)
    with Pipeline.load(path, max_batch=3) as pipeline:
        for picture in pictures:
            answer = pipeline.answer(picture, "", choices=TEXTS)
            expected = softmax([20 * graphs.cosine(picture, text) for text in TEXTS])
            assert answer.scores is not None
            assert list(answer.scores) == TEXTS
            np.testing.assert_allclose(list(answer.scores.values()), expected, atol=1e-6)
            assert answer.text == TEXTS[int(expected.argmax())]
            assert answer.confidence == pytest.approx(expected.max(), abs=1e-6)
            assert answer.log_probability == pytest.approx(np.log(expected.max()), abs=1e-5)


def test_a_text_without_choices_gives_the_cosine(make: Make, pictures: list[np.ndarray]) -> None:
    path = make(CLIP, SOFTMAX)
    graphs = Graphs(path)
    pairs = [(picture, text) for picture in pictures for text in [*TEXTS, "yes", "on it", "how many"]]
    with Pipeline.load(path) as pipeline:
        answers = pipeline.answer_pairs(pairs)
    expected = [graphs.cosine(*pair) for pair in pairs]
    assert min(expected) < 0 < max(expected)
    assert [answer.text for answer in answers] == [f"{value:.2f}" for value in expected]
    assert [answer.confidence for answer in answers] == pytest.approx(
        [max(value, 1e-6) for value in expected], abs=1e-6
    )
    assert all(answer.scores is None for answer in answers)


def test_a_sigmoid_model_gives_every_text_its_own_probability(make: Make, pictures: list[np.ndarray]) -> None:
    path = make(SIGLIP, SIGMOID)
    graphs = Graphs(path)
    expected = [sigmoid(6 * graphs.cosine(pictures[1], text) - 3) for text in TEXTS]
    assert min(expected) < 0.5 < max(expected)
    with Pipeline.load(path) as pipeline:
        ranked = pipeline.answer(pictures[1], "", choices=TEXTS)
        answers = pipeline.answer(pictures[1], TEXTS)
    assert ranked.scores is not None
    assert list(ranked.scores.values()) == pytest.approx(expected, abs=1e-6)
    assert ranked.text == TEXTS[int(np.argmax(expected))]
    for answer, yes in zip(answers, expected, strict=True):
        assert answer.text == ("yes" if yes >= 0.5 else "no")
        assert answer.confidence == pytest.approx(max(yes, 1 - yes), abs=1e-6)
        assert answer.scores == pytest.approx({"yes": yes, "no": 1 - yes}, abs=1e-6)


@pytest.mark.parametrize("graphs", [MATCHER, ALONE, BOTH], ids=["vision and matcher", "matcher alone", "both"])
def test_a_matcher_says_yes_or_no_and_ranks(
    make: Make, pictures: list[np.ndarray], graphs: dict[str, dict[str, Any]]
) -> None:
    path = make(graphs)
    alone = Graphs(path)
    pairs = [(picture, text) for picture in pictures for text in TEXTS]
    margins = [alone.margin(*pair) for pair in pairs]
    assert min(margins) < 0 < max(margins)
    with Pipeline.load(path, max_batch=5) as pipeline:
        answers = pipeline.answer_pairs(pairs)
        ranked = [pipeline.answer(picture, "", choices=TEXTS) for picture in pictures]
    for answer, margin in zip(answers, margins, strict=True):
        assert answer.text == ("yes" if margin >= 0 else "no")
        assert answer.scores == pytest.approx({"yes": sigmoid(margin), "no": sigmoid(-margin)}, abs=1e-6)
    for number, answer in enumerate(ranked):
        expected = softmax(margins[number * len(TEXTS) : (number + 1) * len(TEXTS)])
        assert answer.scores is not None
        assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer.text == TEXTS[int(expected.argmax())]


@pytest.mark.parametrize(("graphs", "vectors"), [(CLIP, False), (SIGLIP, False), (BOTH, True)])
def test_embeddings(make: Make, pictures: list[np.ndarray], graphs: dict[str, dict[str, Any]], vectors: bool) -> None:
    path = make(graphs, SOFTMAX)
    alone = Graphs(path)
    with Pipeline.load(path, max_batch=2) as pipeline:
        images, texts = pipeline.embed_images(iter(pictures)), pipeline.embed_texts(TEXTS)
        assert pipeline.embed_images([]).shape == pipeline.embed_texts([]).shape == (0, 0)
        assert pipeline.embeds
    assert images.dtype == texts.dtype == np.float32
    assert images.shape == ((3, 4, WIDTH) if vectors else (3, WIDTH))
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, atol=1e-6)
    expected = [[alone.cosine(picture, text) for text in TEXTS] for picture in pictures]
    np.testing.assert_allclose(cosines(images, texts), expected, atol=1e-6)


def test_pictures_and_texts_are_computed_once(make: Make, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(make(CLIP, SOFTMAX)) as pipeline:
        for picture in pictures:
            pipeline.answer(picture, "", choices=TEXTS)
        pipeline.answer(pictures[0], TEXTS[0])
        pipeline.embed_texts(TEXTS)
        statistics = pipeline.statistics
        assert statistics.runs["image_encoder"] == 3
        assert statistics.runs["text_encoder"] == 1
        assert (statistics.image_misses, statistics.image_hits) == (3, 1)
        assert (statistics.question_misses, statistics.question_hits) == (4, 13)
        pipeline.clear_caches()
        pipeline.embed_images(pictures[:1])
        assert statistics.runs["image_encoder"] == 4


def test_without_caches_a_call_still_sees_its_picture_once(make: Make, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(make(BOTH), trunk_cache_mb=0, question_cache_mb=0, max_batch=1) as pipeline:
        pipeline.answer(pictures[0], TEXTS)
        assert pipeline.statistics.runs["vision"] == 1
        assert pipeline.statistics.runs["matcher"] == 4
        assert "image_encoder" not in pipeline.statistics.runs


def test_warming_up_runs_every_graph_and_counts_nothing(make: Make) -> None:
    with Pipeline.load(make(BOTH)) as pipeline:
        ran = pipeline.statistics.runs
        pipeline.warm_up()
        assert set(ran) >= set(BOTH)
        assert not pipeline.statistics.runs
        assert pipeline.statistics.image_misses == 0


def test_one_picture_is_one_row_where_the_graph_repeats_it(
    make: Make, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matcher whose pictures have an axis of their own gets the states once for all texts."""
    rows: list[int] = []
    with Pipeline.load(make(MATCHER)) as pipeline:
        session = pipeline.graphs.sessions["matcher"]
        run = session.run

        def watched(inputs: Mapping[str, Any]) -> Any:
            rows.append(inputs["image_states"].shape[0])
            return run(inputs)

        monkeypatch.setattr(session, "run", watched)
        pipeline.answer(pictures[0], "", choices=TEXTS)
        pipeline.answer_pairs([(picture, TEXTS[0]) for picture in pictures])
    assert rows == [1, 3]


def test_an_answer_may_be_streamed(make: Make, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(make(MATCHER)) as pipeline:
        pieces = pipeline.stream(pictures[0], TEXTS[0])
        assert "".join(pieces) == pieces.answer.text
        assert pieces.answer.text in ("yes", "no")


def test_mistakes_are_told(make: Make, pictures: list[np.ndarray], tmp_path: Path) -> None:
    with Pipeline.load(make(MATCHER)) as pipeline:
        assert not pipeline.embeds
        with pytest.raises(ConfigError, match=r"has no embeddings .* Take a dual encoder"):
            pipeline.embed_images(pictures)
        with pytest.raises(ConfigError, match="has no embeddings"):
            pipeline.embed_texts(TEXTS)
        with pytest.raises(QuestionError, match="Give a text that is compared with the picture, or choices"):
            pipeline.answer(pictures[0], " ")
    with pytest.raises(BundleError, match="lacks 'matching'"):
        Pipeline.load(write_matching(tmp_path / "unscaled", CLIP, None))
    with pytest.raises(BundleError, match="has no graph text_encoder"):
        Pipeline.load(write_matching(tmp_path / "half", {"image_encoder": {}}, SOFTMAX))
    torn = write_matching(tmp_path / "torn", {"matcher": {}}, None)
    with Pipeline.load(torn) as pipeline, pytest.raises(BundleError, match="takes image_states, which neither"):
        pipeline.answer(pictures[0], TEXTS[0])


def test_other_models_have_no_embeddings(plain_toy_bundle: Path) -> None:
    with Pipeline.load(plain_toy_bundle) as pipeline, pytest.raises(ConfigError, match="no embeddings"):
        pipeline.embed_texts(["a ball"])
