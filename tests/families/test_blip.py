"""The family `blip`, on small random models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoProcessor,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from edgevqa.export import ExportOptions, export
from edgevqa.export.samples import sample_questions
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract, picture

SIZE = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "picture", "of", "ball", "left", "shapes", "this", "image", "there", ",", ".", "?", "'", "##s", "##es")


def vocabulary() -> dict[str, int]:
    """Special tokens, words, letters and their continuations."""
    asked = [word.strip("?,.").lower() for sample in sample_questions() for word in sample.question.split()]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = (*SPECIAL, *WORDS, *asked, *letters, *(f"##{letter}" for letter in letters))
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def save(folder: Path, model_class: Any, *, spread: float = 0.4, tidied: bool = False) -> None:
    """A random model whose outputs differ from picture to picture, with its processor; `spread` is of the text's weights."""
    torch.manual_seed(0)
    words = vocabulary()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BlipConfig(
        vision_config={**small, "image_size": SIZE, "patch_size": 8, "initializer_range": 0.2},
        text_config={
            **small,
            "vocab_size": len(words) + 2,  # as published: the decoder's start is past the tokenizer's last token
            "bos_token_id": len(words),
            "sep_token_id": words["[SEP]"],
            "max_position_embeddings": 64,
            "initializer_range": spread,
        },
        image_text_hidden_size=16,
        initializer_range=0.4,
    )
    model_class(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab=words, clean_up_tokenization_spaces=tidied)
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer)
    processor.save_pretrained(folder)


def question_ids(folder: Path, question: str) -> list[int]:
    """What the model's own tokenizer makes of a question."""
    ids: list[int] = AutoProcessor.from_pretrained(folder, use_fast=False).tokenizer(question)["input_ids"]
    return ids


class BlipContract(FamilyContract):
    family = "blip"

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = BlipImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}


class TestBlipAnswers(BlipContract):
    graphs = frozenset({"vision", "language_encoder", "language_decoder"})

    @classmethod
    def make(cls, folder: Path) -> None:
        save(folder, BlipForQuestionAnswering)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return question_ids(folder, question)

    def test_an_answer_is_that_of_the_models_own_processor_and_generate(self, folder: Path, bundle_path: Path) -> None:
        processor = AutoProcessor.from_pretrained(folder, use_fast=False)
        model = BlipForQuestionAnswering.from_pretrained(folder).eval()
        rgb = picture(50, 70)
        questions = ["what color is the ball?", "how many shapes are there in this image?", "a?", "left"]
        with Pipeline.load(bundle_path) as pipeline:
            answers = pipeline.answer(rgb, questions, max_new_tokens=20, num_beams=1)
            beams = pipeline.answer(rgb, questions, max_new_tokens=8, num_beams=3)
        for question, answer, beam in zip(questions, answers, beams, strict=True):
            inputs = processor(images=rgb, text=question, return_tensors="pt")
            found = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
            assert answer.text == processor.decode(found, skip_special_tokens=True)
            assert answer.tokens == tuple(found[1:].tolist())
            found = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=3)[0]
            assert beam.text == processor.decode(found, skip_special_tokens=True)
        assert len({answer.tokens for answer in answers}) == len(questions)


class TestBlipCaptions(BlipContract):
    graphs = frozenset({"vision", "language_decoder"})
    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        # More spread gives captions whose logits' float32 rounding alone comes near the tolerance on some processors.
        save(folder, BlipForConditionalGeneration, spread=0.3, tidied=True)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return question_ids(folder, question)[1:-1]

    @pytest.mark.parametrize("prompt", ["", "a picture of", "what ' s in this image"])
    def test_a_caption_is_that_of_the_models_own_processor_and_generate(
        self, folder: Path, bundle_path: Path, prompt: str
    ) -> None:
        processor = AutoProcessor.from_pretrained(folder, use_fast=False)
        model = BlipForConditionalGeneration.from_pretrained(folder).eval()
        rgb = picture(50, 70)
        with Pipeline.load(bundle_path) as pipeline:
            answer = pipeline.answer(rgb, prompt, max_new_tokens=12, num_beams=1)
            stream = pipeline.stream(rgb, prompt, max_new_tokens=12, num_beams=1)
            streamed = "".join(stream)
        inputs = processor(images=rgb, text=prompt or None, return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        assert answer.text == streamed == processor.decode(found, skip_special_tokens=True)
        assert "'" not in prompt or answer.text.startswith("what's")
        assert len(set(answer.tokens)) > 2


class TestBlipRetrieval(BlipContract):
    graphs = frozenset({"vision", "image_encoder", "text_encoder", "matcher"})

    @classmethod
    def make(cls, folder: Path) -> None:
        save(folder, BlipForImageTextRetrieval)

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return question_ids(folder, question)

    def test_matches_and_embeddings_are_those_of_the_models_own_forward(self, folder: Path, bundle_path: Path) -> None:
        processor = AutoProcessor.from_pretrained(folder, use_fast=False)
        model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
        pictures = [picture(50, 70), picture(64, 40, 1)]
        texts = ["a picture of the ball", "how many shapes", "left", "what color is there in this image?"]
        with Pipeline.load(bundle_path) as pipeline:
            similarity = pipeline.embed_images(pictures) @ pipeline.embed_texts(texts).T
            inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                expected = model(**inputs, use_itm_head=False).itm_score.numpy()
            np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-5)
            for rgb in pictures:
                inputs = processor(images=[rgb] * len(texts), text=texts, padding=True, return_tensors="pt")
                with torch.no_grad():
                    logits = model(**inputs).itm_score
                odds = logits[:, 1] - logits[:, 0]
                ranked = pipeline.answer(rgb, "", choices=texts)
                assert ranked.scores == pytest.approx(dict(zip(texts, odds.softmax(0).tolist(), strict=True)), abs=1e-4)
                for text, answer, pair in zip(texts, pipeline.answer(rgb, texts), logits, strict=True):
                    fits = float(pair.softmax(0)[1])
                    assert answer.text == ("yes" if fits >= 0.5 else "no"), text
                    assert answer.confidence == pytest.approx(max(fits, 1 - fits), abs=1e-4)


def test_another_architecture_is_an_error_that_names_the_known(tmp_path: Path) -> None:
    save(tmp_path, BlipForQuestionAnswering)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BlipModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"holds a BlipModel; .* exports BlipForQuestionAnswering, "):
        export(str(tmp_path), tmp_path / "family.bundle", ExportOptions())
