"""A caption's prompt is read at once, and gives what reading it word by word gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.caches import make_cache
from edgevqa.runtime.decoding import log_softmax
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.sessions.base import Array, Tensor
from tests.runtime.pipelines.conftest import SIZE
from tests.runtime.pipelines.wordless_toys import write_captioner

PROMPTS = ("", "the", "the red ball", "two left of the cat")
NEW = 5


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("captions") / "toy")


def rgb(seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def fed_one_by_one(pipeline: Pipeline, context: Mapping[str, Tensor | Array], tokens: list[int]) -> Array:
    """Log-probabilities (1, vocab) after the last of the tokens, none of which the decoder reads with another."""
    session = pipeline.graphs.sessions["language_decoder"]
    cache = make_cache(session, 1, len(tokens))
    logits = np.zeros(0)
    for token in tokens:
        place = np.array([cache.length])
        outputs = session.run(
            {**context, **cache.inputs(), "decoder_input_ids": np.array([[token]]), "cache_length": place}
        )
        cache.append(outputs)
        logits = outputs["logits"].numpy()
    return log_softmax(logits)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_caption_is_that_of_a_decoder_fed_word_by_word(
    captioner: Path, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pipeline.load(captioner, backend="onnxruntime") as pipeline:
        run, seen, shapes = pipeline.graphs.run, {}, []

        def watched(name: str, inputs: Mapping[str, Tensor | Array], *, stage: str | None = None) -> dict[str, Tensor]:
            outputs = run(name, inputs, stage=stage)
            if name == "projector":
                seen.update(outputs)
            if name == "language_decoder":
                shapes.append(inputs["decoder_input_ids"].shape)
            return outputs

        monkeypatch.setattr(pipeline.graphs, "run", watched)
        answer = pipeline.answer(rgb(), prompt, max_new_tokens=NEW)
        generation = pipeline.manifest.generation
        assert generation is not None
        start = [generation.decoder_start_token_id, *Questions.of(pipeline.bundle).question(prompt).ids]
        assert len(start) >= 1 + len(prompt.split())
        assert shapes == [(1, len(start))] + [(1, 1)] * (len(answer.tokens) - 1)
        for number, token in enumerate(answer.tokens):
            gained = fed_one_by_one(pipeline, seen, [*start, *answer.tokens[:number]])
            assert int(gained.argmax()) == token


def test_prompts_of_many_lengths_in_a_batch_and_with_beams(captioner: Path) -> None:
    pairs = [(rgb(seed), prompt) for seed in range(2) for prompt in PROMPTS]
    for beams in (1, 3):
        with Pipeline.load(captioner, backend="onnxruntime") as pipeline:
            together = pipeline.answer_pairs(pairs, max_new_tokens=NEW, num_beams=beams)
            alone = [pipeline.answer(*pair, max_new_tokens=NEW, num_beams=beams) for pair in pairs]
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
        assert len({answer.tokens for answer in together}) > 2


def test_what_the_decoder_attends_to_is_kept_for_further_prompts(captioner: Path) -> None:
    with Pipeline.load(captioner, backend="onnxruntime") as pipeline:
        for prompt in PROMPTS:
            pipeline.answer(rgb(), prompt, max_new_tokens=NEW)
        assert pipeline.statistics.runs["vision_trunk"] == pipeline.statistics.runs["projector"] == 1
        pipeline.answer(rgb(1), "", max_new_tokens=NEW)
        assert pipeline.statistics.runs["projector"] == 2
    with Pipeline.load(captioner, backend="onnxruntime", trunk_cache_mb=0) as pipeline:  # it holds no keys and values
        for prompt in PROMPTS[:2]:
            pipeline.answer(rgb(), prompt, max_new_tokens=NEW)
        assert pipeline.statistics.runs["projector"] == 1
    with Pipeline.load(captioner, backend="onnxruntime", prefix_cache_mb=0) as pipeline:
        for prompt in PROMPTS[:2]:
            pipeline.answer(rgb(), prompt, max_new_tokens=NEW)
        assert pipeline.statistics.runs["projector"] == 2


def test_a_bundle_whose_vision_gives_no_keys_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    path = write_captioner(tmp_path / "toy")
    bundle = Bundle.open(path)
    variant = bundle.variant("fp32")
    graphs = {name: graph for name, graph in variant.graphs.items() if name != "projector"}
    with BundleWriter.extend(bundle) as writer:
        writer.finish(
            msgspec.structs.replace(bundle.manifest, variants={"fp32": msgspec.structs.replace(variant, graphs=graphs)})
        )
    with pytest.raises(BundleError, match=r"gives cross_key\.0, cross_value\.0\. Export it again"):
        Pipeline.load(path, backend="onnxruntime")


def test_the_room_that_a_prompt_leaves_is_told(tmp_path: Path) -> None:
    bundle = Bundle.open(write_captioner(tmp_path / "toy"))
    assert bundle.manifest.generation is not None
    generation = msgspec.structs.replace(bundle.manifest.generation, max_context=8)
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, generation=generation))
    with Pipeline.load(bundle.root, backend="onnxruntime") as pipeline:
        taken = len(Questions.of(pipeline.bundle).question("the red").ids)
        said = rf"takes 8 tokens, but 8 are wanted after a prompt of {taken}\. Ask for at most {8 - taken}\."
        with pytest.raises(ConfigError, match=said):
            pipeline.answer(rgb(), "the red", max_new_tokens=8)
        assert pipeline.answer(rgb(), "the red", max_new_tokens=8 - taken).tokens
        with pytest.raises(ConfigError, match=r"wanted after a prompt of \d+\. Give a shorter prompt\."):
            pipeline.answer(rgb(), "the red ball of the cat with two dogs on", max_new_tokens=1)
