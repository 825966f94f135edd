"""The family `smolvlm`, on small random models of both architectures."""

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
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from edgevqa.export.assets import tokenizer_bytes
from edgevqa.export.families.smolvlm import image_spec
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ImageError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from tests.families.contract import QUESTION, FamilyContract, picture
from tests.families.tiny.tokenizers import byte_level_tokenizer

TILE, TILES = 16, 3
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, TILES + 1) for column in range(1, TILES + 1)),
)
PLACE = "<image>"
ODD_SIZES = ((1, 1), (3, 200), (200, 3), (48, 80), (131, 97), (700, 1300), (1, 5000))
ASKED_SIZES = ((48, 80), (131, 97), (6, 90))
TEMPLATE = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


def chat(folder: Path, pictures: int, question: str) -> str:
    """A prompt by transformers, with one token for a picture."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
    message = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


class TestSmolVLM(FamilyContract):
    family = "smolvlm"
    graphs = frozenset({"vision", "projector", "language_decoder"})
    classes: ClassVar[tuple[Any, Any, Any]] = (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
    )

    layers: ClassVar[int] = 2
    splits: ClassVar[bool] = True
    penalty: ClassVar[float] = 1.5  # for tokens between tiles too

    @classmethod
    def make(cls, folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = byte_level_tokenizer(
            special=SPECIAL, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|endoftext|>"
        )
        tokenizer.chat_template = TEMPLATE
        make_config, make_model, make_processor = cls.classes
        config = make_config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": cls.layers,
                "num_attention_heads": 4,
                "image_size": TILE,
                "patch_size": 4,
                "initializer_range": 0.2,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": cls.layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "initializer_range": 0.3,
                "pad_token_id": 0,
                "eos_token_id": 2,
                "bos_token_id": 1,
            },
            image_token_id=tokenizer.get_vocab()["<image>"],
            scale_factor=2,
        )
        model = make_model(config)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
        model.generation_config.repetition_penalty = cls.penalty
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        make_processor(
            size={"longest_edge": TILE * TILES}, max_image_size={"longest_edge": TILE}, do_image_splitting=cls.splits
        ).save_pretrained(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = cls.classes[2].from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"][0]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(chat(folder, 1, question))["input_ids"]
        return ids

    @classmethod
    def prompt(cls, folder: Path, rgbs: list[NDArray[np.uint8]], question: str) -> tuple[str, torch.Tensor]:
        """A prompt with every place of the pictures, and their tiles (1, tiles, 3, side, side), by transformers alone."""
        seen = cls.classes[2].from_pretrained(folder)([rgbs], return_tensors="pt", return_row_col_info=True)
        first, *rest = chat(folder, len(rgbs), question).split(PLACE)
        names = {"image_token": PLACE, "fake_token_around_image": SPECIAL[3], "global_image_token": SPECIAL[5]}
        grids = zip(seen["rows"][0], seen["cols"][0], strict=True)
        places = [get_image_prompt_string(rows, columns, 4, **names) for rows, columns in grids]
        return first + "".join(a + b for a, b in zip(places, rest, strict=True)), seen["pixel_values"]

    @classmethod
    def eager(cls, folder: Path, rgbs: list[NDArray[np.uint8]], question: str, tokens: int) -> tuple[int, ...]:
        """What transformers alone answers."""
        text, pixels = cls.prompt(folder, rgbs, question)
        ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        model = cls.classes[1].from_pretrained(folder, attn_implementation="eager").eval()
        found = model.generate(**ids, pixel_values=pixels, do_sample=False, max_new_tokens=tokens)
        return tuple(found[0, ids["input_ids"].shape[1] :].tolist())

    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_odd_pictures_and_their_prompts(self, folder: Path, bundle_path: Path, size: tuple[int, int]) -> None:
        rgb, spec = picture(*size), Bundle.open(bundle_path).manifest.image
        assert spec is not None
        found = prepare(rgb, spec)
        content = np.moveaxis(rgb, -1, 0)  # a row of one pixel would be taken for channels
        text, pixels = self.prompt(folder, [content], QUESTION)
        np.testing.assert_allclose(found.inputs["pixel_values"], pixels[0].numpy(), rtol=0, atol=1e-5)
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        assert found.expansion is not None
        opening = found.expansion[0]
        first, last = ids.index(opening), len(ids) - ids[::-1].index(opening)
        assert list(found.expansion) == ids[first:last]
        assert spec.tokens is not None
        assert len(found.expansion) <= spec.tokens
        assert len(pixels[0]) <= spec.axes["tiles"][2]

    def test_pictures_of_any_size_are_answered_by_one_bundle(self, folder: Path, bundle_path: Path) -> None:
        rgbs = [picture(*size, seed) for seed, size in enumerate(ASKED_SIZES)]
        expected = [self.eager(folder, [rgb], QUESTION, 8) for rgb in rgbs]
        with Pipeline.load(bundle_path) as pipeline:
            together = pipeline.answer_pairs([(rgb, QUESTION) for rgb in rgbs], max_new_tokens=8)
            alone = [pipeline.answer(rgb, QUESTION, max_new_tokens=8) for rgb in rgbs]
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone] == expected
        assert len(set(expected)) > 1

    def test_a_question_may_be_about_several_pictures(self, folder: Path, bundle_path: Path) -> None:
        rgbs = [picture(*size, seed) for seed, size in enumerate(ASKED_SIZES)]
        with Pipeline.load(bundle_path) as pipeline:
            found = pipeline.answer(rgbs, QUESTION, max_new_tokens=8)
        assert found.tokens == self.eager(folder, rgbs, QUESTION, 8)


class TestIdefics3(TestSmolVLM):
    """The older architecture, with pictures that are not cut into tiles."""

    quantized = False
    layers = 1
    splits = False
    penalty = 1.0
    classes = (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil)


def test_a_picture_with_more_tiles_than_names_is_refused(tmp_path: Path) -> None:
    TestSmolVLM.make(tmp_path)
    model = SmolVLMForConditionalGeneration.from_pretrained(tmp_path)
    spec = image_spec(tmp_path, model, tokenizer_bytes(tmp_path))
    spec.settings["longest_side"] = 5 * TILE
    with pytest.raises(ImageError, match="5 x 5 tiles"):
        prepare(picture(40, 40), spec)
