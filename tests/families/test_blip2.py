"""The family `blip2`, on small random models with each of its heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from edgevqa.export.answers import open_tokenizer
from edgevqa.export.components.qformer import QFormer, Sight, embed_words, sight_bias
from edgevqa.export.families.blip2 import Blip2
from edgevqa.export.samples import PICTURES
from edgevqa.export.sources import Source
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.images import load_image
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.questions import Questions
from tests.families.contract import QUESTION, FamilyContract
from tests.families.tiny.query_models import (
    QUERIES,
    processed,
    qformer_values,
    save_image_processor,
    shake,
    text_values,
    token_ids,
    vision_values,
)
from tests.families.tiny.tokenizers import bert_tokenizer, opt_tokenizer, t5_tokenizer

QUESTIONS = [QUESTION, "how many dogs are there?", "what is it?"]
IMAGES = [PICTURES / name for name in sorted(file.name for file in PICTURES.glob("*.png"))[:2]]


def save(folder: Path, head: str, *, image_token: bool = True) -> None:
    """A folder as the hub has it: the processor's files, and `<image>` as the last token of the language model."""
    make = {"opt": opt_tokenizer, "t5": t5_tokenizer}[head]
    tokenizer = make(special=["<image>"] if image_token else [])
    config = Blip2Config(
        vision_config=vision_values(),
        qformer_config=qformer_values(),
        text_config={"model_type": head, **text_values(tokenizer)[head]},
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.get_vocab().get("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    shake(model, matrices=0.2 if head == "t5" else 0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_image_processor(folder)


class Generation(FamilyContract):
    """What both language models share."""

    family = "blip2"
    head: ClassVar[str]
    prompt: ClassVar[str]
    place: ClassVar[list[str]]
    """What stands for the picture in the runtime's ids."""

    @classmethod
    def make(cls, folder: Path) -> None:
        save(folder, cls.head)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return processed(folder, rgb)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = Blip2Processor(BlipImageProcessorPil.from_pretrained(folder), tokenizer, num_query_tokens=QUERIES)
        blank = np.zeros((8, 8, 3), dtype=np.uint8)
        ids: list[int] = processor(images=blank, text=cls.prompt.replace("{question}", question))["input_ids"][0]
        assert set(ids[:QUERIES]) == set(token_ids(tokenizer, ["<image>"])), "the picture comes first"
        return token_ids(tokenizer, cls.place) + ids[QUERIES:]

    def test_a_picture_is_described_without_a_question(self, folder: Path, bundle_path: Path) -> None:
        """The prompt is then what `generate` makes of none (exporting compares the answers): no template."""
        text: Any = Blip2Config.from_pretrained(folder).text_config
        found = Questions.of(Bundle.open(bundle_path)).question("").ids
        assert list(found) == [*token_ids(AutoTokenizer.from_pretrained(folder), self.place), text.bos_token_id]
        with Pipeline.load(bundle_path) as pipeline:
            asked = [pipeline.answer(IMAGES[0], question, max_new_tokens=12).tokens for question in ("", QUESTION)]
            together = pipeline.answer(IMAGES[0], ["", QUESTION], max_new_tokens=12)
        assert [answer.tokens for answer in together] == asked

    def test_a_batch_answers_as_each_alone_and_sees_a_picture_once(self, bundle_path: Path) -> None:
        pairs = [(image, question) for image in IMAGES for question in QUESTIONS]
        with Pipeline.load(bundle_path) as pipeline:
            together = pipeline.answer_pairs(pairs, max_new_tokens=12)
            assert pipeline.statistics.runs["vision"] == pipeline.statistics.runs["qformer"] == 1
            pipeline.clear_caches()
            alone = [pipeline.answer(*pair, max_new_tokens=12).tokens for pair in pairs]
            assert pipeline.statistics.runs["qformer"] == 1 + len(IMAGES), "the queries do not depend on the question"
        assert [answer.tokens for answer in together] == alone
        assert len(set(alone)) > 1


class TestBlip2T5(Generation):
    head = "t5"
    graphs = frozenset({"vision", "qformer", "language_encoder", "language_decoder"})
    quantized = False
    prompt = "Question: {question} Short answer:"
    place: ClassVar[list[str]] = []


class TestBlip2Opt(Generation):
    head = "opt"
    graphs = frozenset({"vision", "qformer", "language_decoder"})
    prompt = "Question: {question} Answer:"
    place: ClassVar[list[str]] = ["<image>"]

    def test_an_answer_ends_as_the_language_models_configuration_says(self, bundle_path: Path) -> None:
        generation = Bundle.open(bundle_path).manifest.generation
        assert generation is not None
        assert generation.eos_token_id == 7

    def test_a_checkpoint_without_an_image_token_puts_the_picture_first(self, tmp_path: Path) -> None:
        """Older folders have no `image_token_index`, and `generate` of today fails on them: a free row takes its place."""
        save(tmp_path, "opt", image_token=False)
        loaded = Blip2().load(Source(kind="folder", family="blip2", id="old", path=tmp_path, root=tmp_path))
        text, tokenizer = loaded.required_text, AutoTokenizer.from_pretrained(tmp_path)
        assert text.spec.image_token_id == loaded.model.config.image_token_id == len(tokenizer)
        prompt = tokenizer(self.prompt.replace("{question}", QUESTION))["input_ids"]
        assert list(open_tokenizer(text).question(QUESTION).ids) == [len(tokenizer), *prompt]
        assert all(case.tokens for case in Blip2().answer_cases(loaded))


class TestBlip2Retrieval(FamilyContract):
    family = "blip2"
    graphs = frozenset({"vision", "image_encoder", "text_encoder", "matcher"})

    @classmethod
    def make(cls, folder: Path) -> None:
        tokenizer = bert_tokenizer()
        config = Blip2Config(
            vision_config=vision_values(),
            qformer_config={**qformer_values(len(tokenizer) + 1), "use_qformer_text_input": True},
            num_query_tokens=QUERIES,
            image_text_hidden_size=16,
            image_token_index=len(tokenizer),
        )
        model = Blip2ForImageTextRetrieval(config)
        shake(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_image_processor(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return processed(folder, rgb)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(question)["input_ids"]
        return ids

    def test_the_matcher_ranks_as_the_eager_model(self, folder: Path, bundle_path: Path) -> None:
        texts = ["a red circle", "two dogs", "is there a blue rectangle?"]
        with Pipeline.load(bundle_path) as pipeline:
            found = [pipeline.answer(image, "", choices=texts).scores for image in IMAGES]
            assert pipeline.statistics.runs["vision"] == len(IMAGES)
            pipeline.answer(IMAGES[0], "two dogs")
            assert pipeline.statistics.runs["vision"] == len(IMAGES), "a picture's states are kept"
        for image, scores in zip(IMAGES, found, strict=True):
            logits = eager(folder, image, texts, matching=True)
            expected = torch.softmax(logits[:, 1] - logits[:, 0], dim=0)
            assert scores is not None
            assert [scores[text] for text in texts] == pytest.approx(expected.tolist(), abs=1e-4)

    def test_embeddings_compare_as_the_eager_model(self, folder: Path, bundle_path: Path) -> None:
        texts = ["a red circle", "two dogs"]
        with Pipeline.load(bundle_path) as pipeline:
            images, words = pipeline.embed_images(IMAGES), pipeline.embed_texts(texts)
        assert images.shape == (len(IMAGES), QUERIES, 16)
        similarity = (images @ words.T).max(axis=1)
        expected = np.stack([eager(folder, image, texts, matching=False).numpy()[0] for image in IMAGES])
        np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def eager(folder: Path, image: Path, texts: list[str], *, matching: bool) -> torch.Tensor:
    """What transformers' model and processor give for texts about a picture."""
    processor = Blip2Processor(
        BlipImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        num_query_tokens=QUERIES,
    )
    model = Blip2ForImageTextRetrieval.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = processor(images=load_image(image), text=texts, padding=True, return_tensors="pt")
    pixels = inputs.pop("pixel_values").expand(len(texts) if matching else 1, -1, -1, -1)
    found: torch.Tensor = model(**inputs, pixel_values=pixels, use_image_text_matching_head=matching).logits_per_image
    return found


class TestSight:
    """The three masks of pre-training, on the Q-Former of a retrieval model: what queries and words see of each other."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Blip2ForImageTextRetrieval:
        config = Blip2Config(
            vision_config=vision_values(),
            qformer_config={**qformer_values(), "use_qformer_text_input": True},
            num_query_tokens=QUERIES,
        )
        config._attn_implementation = "eager"
        model = Blip2ForImageTextRetrieval(config)
        shake(model)
        model.eval()
        return model

    @torch.no_grad()
    @pytest.mark.parametrize("sight", ["bidirectional", "causal", "uni-modal"])
    def test_a_sight_is_transformers_qformer_under_that_mask(
        self, model: Blip2ForImageTextRetrieval, sight: Sight
    ) -> None:
        """The eager Q-Former takes any mask; the words' last states are compared too, which generation would read."""
        ids, mask = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        images = torch.randn(2, 17, 32)
        states = torch.cat([model.query_tokens.expand(2, -1, -1), embed_words(model.embeddings, ids)], dim=1)
        ours = QFormer(model.qformer, queries=QUERIES, words=True, all_states=True)
        found = ours(model.qformer.layernorm(states), images, sight_bias(sight, QUERIES, mask))
        seen = allowed(sight, mask)
        expected = model.qformer.encoder(
            model.qformer.layernorm(states),
            attention_mask=torch.where(seen[:, None], 0.0, torch.finfo(torch.float32).min),
            encoder_hidden_states=images,
            query_length=QUERIES,
        ).last_hidden_state
        real = torch.cat([torch.ones(2, QUERIES), mask], dim=1).bool()
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)

    @torch.no_grad()
    def test_uni_modal_is_both_sides_alone(self, model: Blip2ForImageTextRetrieval) -> None:
        """One pass under that mask gives what contrastive retrieval computes in two."""
        ids, images = torch.tensor([[4, 5, 6]]), torch.randn(1, 17, 32)
        words = embed_words(model.embeddings, ids)
        states = model.qformer.layernorm(torch.cat([model.query_tokens, words], dim=1))
        together = QFormer(model.qformer, queries=QUERIES, words=True, all_states=True)(
            states, images, sight_bias("uni-modal", QUERIES, torch.ones_like(ids))
        )
        queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=images).last_hidden_state
        text = model.qformer(query_embeds=words, query_length=0).last_hidden_state
        torch.testing.assert_close(together, torch.cat([queries, text], dim=1), rtol=0, atol=1e-4)


def allowed(sight: str, mask: torch.Tensor) -> torch.Tensor:
    """Who sees whom, (batch, queries + words, queries + words), spelled out place by place."""
    length = QUERIES + mask.shape[1]
    seen = torch.zeros(len(mask), length, length, dtype=torch.bool)
    for row in range(len(mask)):
        for looker in range(length):
            for other in range(length):
                word, other_word = looker >= QUERIES, other >= QUERIES
                real = not other_word or bool(mask[row, other - QUERIES])
                rules = {
                    "bidirectional": True,
                    "uni-modal": word == other_word,
                    "causal": not other_word or (word and other <= looker),
                }
                seen[row, looker, other] = real and rules[sight]
    return seen
