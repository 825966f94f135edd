"""The family `qwen2_5_vl`, on a small random model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from edgevqa.export.families.qwen2_5_vl import axes, image_spec
from edgevqa.runtime.errors import ConfigError, ImageError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.preprocessing.qwen2_vl import EMPTY, PatchSettings, layout, prepare_all, settings_of
from tests.families.contract import QUESTION, FamilyContract, picture
from tests.families.tiny.tokenizers import byte_level_tokenizer

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLACE = "<|image_pad|>"
ODD_SIZES = ((1, 1), (3, 200), (200, 3), (5, 1000), (14, 14), (48, 80), (131, 97), (700, 1300))
ASKED_SIZES = ((48, 80), (131, 97), (6, 90))
TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chat(folder: Path, pictures: int, question: str) -> str:
    """A prompt by transformers, with one token for a picture."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
    message = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


class TestQwen25VL(FamilyContract):
    family = "qwen2_5_vl"
    graphs = frozenset({"vision", "projector", "language_decoder"})

    @classmethod
    def make(cls, folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = byte_level_tokenizer(special=SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.chat_template = TEMPLATE
        ids = {name: tokenizer.get_vocab()[name] for name in SPECIAL}
        config = Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "patch_size": 4,
                "window_size": 16,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
                "initializer_range": 0.2,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "initializer_range": 0.3,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        model.generation_config.pad_token_id = ids["<|endoftext|>"]
        model.generation_config.repetition_penalty = 1.3  # the hub's checkpoints have one, of 1.05
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Qwen2VLImageProcessorPil(
            size={"shortest_edge": 16 * 16, "longest_edge": 40 * 40}, patch_size=4, temporal_patch_size=2, merge_size=2
        ).save_pretrained(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        ids: list[int] = AutoTokenizer.from_pretrained(folder)(chat(folder, 1, question))["input_ids"]
        return ids

    @classmethod
    def eager(cls, folder: Path, rgbs: list[NDArray[np.uint8]], question: str, tokens: int) -> tuple[int, ...]:
        """What transformers alone answers: its processor, template and `generate`."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(rgbs, return_tensors="pt")
        first, *rest = chat(folder, len(rgbs), question).split(PLACE)
        counts = [int(grid.prod()) // 4 for grid in seen["image_grid_thw"]]
        text = first + "".join(PLACE * count + part for count, part in zip(counts, rest, strict=True))
        ids = tokenizer(text, return_tensors="pt")
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        types = (ids["input_ids"] == model.config.image_token_id).int()
        found = model.generate(**ids, **seen, mm_token_type_ids=types, do_sample=False, max_new_tokens=tokens)
        return tuple(found[0, ids["input_ids"].shape[1] :].tolist())

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
        expected = self.eager(folder, rgbs, QUESTION, 8)
        with Pipeline.load(bundle_path) as pipeline:
            found = pipeline.answer(rgbs, [QUESTION, "what is it?"], max_new_tokens=8)
            assert pipeline.answer(rgbs[:1], QUESTION).tokens == pipeline.answer(rgbs[0], QUESTION).tokens
            assert pipeline.answer(rgbs[::-1], QUESTION, max_new_tokens=8).tokens != expected
            with pytest.raises(ConfigError, match="empty"):
                pipeline.answer([], QUESTION)
        assert found[0].tokens == expected

    def test_a_picture_that_is_too_thin_is_refused(self, bundle_path: Path) -> None:
        with Pipeline.load(bundle_path) as pipeline, pytest.raises(ImageError, match="200 times longer"):
            pipeline.answer(picture(1, 201), QUESTION)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor with its published settings."""
    folder = tmp_path_factory.mktemp("published")
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", ODD_SIZES)
def test_odd_pictures_are_prepared_as_published(published: Path, size: tuple[int, int]) -> None:
    rgb, processor = picture(*size), Qwen2VLImageProcessorPil.from_pretrained(published)
    spec = image_spec(published, Qwen2_5_VLConfig().vision_config)
    found = prepare(rgb, spec)
    expected = processor(rgb, return_tensors="np", input_data_format="channels_last")
    np.testing.assert_allclose(found.inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
    _, high, wide = expected["image_grid_thw"][0].tolist()
    assert found.grid == (1, high // 2, wide // 2)
    settings = settings_of(spec)
    assert high * wide <= settings.most_patches
    assert max(high, wide) <= settings.longest_side
    ranges = axes(settings, spec.height, spec.width)
    assert len(found.inputs["window_patches"]) <= ranges["windows"][2]


def test_several_pictures_lie_as_the_model_lays_them(published: Path) -> None:
    spec = image_spec(published, Qwen2_5_VLConfig().vision_config)
    inputs, grids = prepare_all([picture(*size) for size in ODD_SIZES[4:]], spec)
    sizes = torch.tensor([[1, *grid] for grid in grids])
    np.testing.assert_array_equal(inputs["patch_positions"], get_vision_position_ids(sizes, 2).numpy())
    order, edges = get_vision_window_index(sizes, 2, 112, 14)
    patches = (order.numpy()[:, None] * 4 + np.arange(4)).ravel()
    expected = [patches[first:last].tolist() for first, last in pairwise(edges.tolist())]
    assert [[patch for patch in row if patch != EMPTY] for row in inputs["window_patches"].tolist()] == expected
    counts = [high * wide for high, wide in grids]
    assert (inputs["frame_patches"] != EMPTY).sum(axis=1).tolist() == counts
    for kind in ("window", "frame"):
        standing = inputs[f"{kind}_patches"].ravel()[inputs[f"{kind}_places"]]
        np.testing.assert_array_equal(standing, np.arange(sum(counts)))


@pytest.mark.parametrize("grid", [(2, 600), (600, 2), (74, 68), (10, 500)])
def test_the_windows_of_any_shape_are_within_the_engines_range(grid: tuple[int, int]) -> None:
    settings = PatchSettings(patch=14, merge=2, frames=2, window=8, least_pixels=56 * 56, most_pixels=1 << 23)
    ranges = axes(settings, 476, 644)
    found = layout([grid], settings)
    assert found["window_patches"].shape == (-(-grid[0] // 8) * -(-grid[1] // 8), 64)
    assert len(found["window_patches"]) <= ranges["windows"][2]
