"""The family `llava`, on small random models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from edgevqa.export.samples import PICTURES
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import QUESTION, FamilyContract
from tests.families.tiny.tokenizers import llama_tokenizer

QUESTIONS = [QUESTION, "how many dogs are there?", "what is it?"]


class TestLlava(FamilyContract):
    family = "llava"
    graphs = frozenset({"vision", "projector", "language_decoder"})

    @classmethod
    def make(cls, folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = llama_tokenizer(special=["<image>"])
        image: Any = tokenizer.convert_tokens_to_ids("<image>")
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
        model = LlavaForConditionalGeneration(config)
        model.generation_config.pad_token_id = 0
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        size = {"shortest_edge": 32}
        CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(f"USER: <image>\n{question} ASSISTANT:")["input_ids"]
        return ids

    def test_a_batch_and_a_kept_prefix_answer_as_each_alone(self, bundle_path: Path) -> None:
        images = [PICTURES / name for name in sorted(file.name for file in PICTURES.glob("*.png"))[:2]]
        pairs = [(image, question) for image in images for question in QUESTIONS]
        with Pipeline.load(bundle_path, prefix_cache_mb=0, trunk_cache_mb=0) as forgetful:
            alone = [forgetful.answer(*pair, max_new_tokens=12).tokens for pair in pairs]
            assert forgetful.statistics.image_misses == len(pairs)
        with Pipeline.load(bundle_path) as pipeline:
            together = pipeline.answer_pairs(pairs, max_new_tokens=12)
            assert pipeline.statistics.runs["vision"] == 1, "both pictures in one batch"
            again = [pipeline.answer(*pair, max_new_tokens=12).tokens for pair in pairs]
            assert pipeline.statistics.runs["vision"] == 1, "the prefix was kept"
        assert [answer.tokens for answer in together] == again == alone
        assert len(set(alone)) > 1

    def test_beams_choices_and_streams(self, bundle_path: Path) -> None:
        image = next(iter(sorted(PICTURES.glob("*.png"))))
        with Pipeline.load(bundle_path) as pipeline:
            whole = pipeline.answer(image, QUESTION, max_new_tokens=8)
            stream = pipeline.stream(image, QUESTION, max_new_tokens=8)
            assert "".join(stream) == stream.answer.text == whole.text
            beams = pipeline.answer(image, QUESTION, max_new_tokens=8, num_beams=3)
            assert beams.log_probability >= whole.log_probability - 1e-6
            chosen = pipeline.answer(image, QUESTION, choices=["red", "blue ball"])
            assert chosen.scores is not None
            assert sum(chosen.scores.values()) == pytest.approx(1)

    def test_special_tokens_in_a_question_are_not_pictures(self, bundle_path: Path) -> None:
        image = next(iter(sorted(PICTURES.glob("*.png"))))
        with Pipeline.load(bundle_path) as pipeline:
            odd = pipeline.answer(image, "what <image> is </s> it?", max_new_tokens=4)
            assert odd.tokens == pipeline.answer(image, "what   is   it?", max_new_tokens=4).tokens
