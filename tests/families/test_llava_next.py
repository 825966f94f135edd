"""The family `llava_next`, on a small random model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from tests.families.contract import QUESTION, FamilyContract, picture
from tests.families.tiny.tokenizers import llama_tokenizer

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
SHAPES = [(48, 80), (131, 97), (33, 90), (200, 31), (64, 64), (17, 16)]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


class TestLlavaNext(FamilyContract):
    family = "llava_next"
    graphs = frozenset({"vision", "projector", "language_decoder"})

    @classmethod
    def make(cls, folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = llama_tokenizer(special=["<image>"])
        tokenizer.chat_template = TEMPLATE
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
            max_position_embeddings=512,
            initializer_range=0.3,
        )
        config = LlavaNextConfig(
            vision_config=vision, text_config=text, image_token_index=image, image_grid_pinpoints=PINPOINTS
        )
        model = LlavaNextForConditionalGeneration(config)
        model.generation_config.pad_token_id = 0
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cls.image_processor().save_pretrained(folder)

    @classmethod
    def image_processor(cls) -> Any:
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        )

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = LlavaNextImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": np.asarray(processor(rgb, return_tensors="np")["pixel_values"])[0]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(f"USER: <image>\n{question} ASSISTANT:")["input_ids"]
        return ids

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_takes_as_many_places_as_the_models_processor_gives_it(
        self, folder: Path, bundle_path: Path, shape: tuple[int, int]
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = LlavaNextProcessor(
            self.image_processor(),
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        rgb = picture(*shape)
        expected = processor(images=rgb, text="USER: <image>\nx ASSISTANT:", return_tensors="np")
        spec = Bundle.open(bundle_path).manifest.image
        assert spec is not None
        found = prepare(rgb, spec).inputs
        assert (
            len(found["pack_index"]) == (expected["input_ids"] == processor.image_token_id).sum() <= (spec.tokens or 0)
        )
        np.testing.assert_allclose(found["pixel_values"], expected["pixel_values"][0], rtol=0, atol=1e-5)

    def test_pictures_of_several_shapes_in_one_batch_answer_as_alone(self, bundle_path: Path) -> None:
        pairs = [(picture(*shape, seed=number), QUESTION) for number, shape in enumerate(SHAPES)]
        with Pipeline.load(bundle_path, prefix_cache_mb=0) as pipeline:
            alone = [pipeline.answer(*pair, max_new_tokens=10).tokens for pair in pairs]
            together = pipeline.answer_pairs(pairs, max_new_tokens=10)
        assert [answer.tokens for answer in together] == alone
        assert len(set(alone)) > 1
