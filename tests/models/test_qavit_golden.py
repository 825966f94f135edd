"""The torch model against golden arrays of the published implementation, stage by stage.

Tolerance 1e-4: correctly merged LoRA alone moves logits of size 20 by 2.5e-5; the smallest known mistake moves 1e-3.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevqa.models.qavit.model import QAViTForVQA
from edgevqa.models.qavit.official import load_official

TOLERANCE = 1e-4
CASES = ["s0", "s1", "s2", "s3", "b"]
Golden = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def model(variant: str, golden_root: Path) -> QAViTForVQA:
    folder = golden_root / variant
    return load_official(folder / "ckpt.pth", folder / "config.yaml", root=golden_root).model


def tensors(arrays: dict[str, np.ndarray], case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, ids, mask, and the all-ones question mask that the published vision layers work with."""
    ids, mask = (torch.from_numpy(arrays[f"{case}_{name}"]) for name in ("input_ids", "attention_mask"))
    pixels = torch.from_numpy(arrays["pixel_values"][arrays[f"{case}_image_index"]])
    return pixels, ids, mask, torch.ones_like(mask)


def difference(found: Tensor, expected: np.ndarray) -> float:
    assert tuple(found.shape) == expected.shape
    return float((found - torch.from_numpy(expected)).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches(model: QAViTForVQA, variant: str, golden: Golden, case: str) -> None:
    arrays = golden(variant)
    pixels, ids, mask, ones = tensors(arrays, case)
    if variant != "plain":
        assert difference(model.encode_question(ids, mask), arrays[f"{case}_instruct_features"]) < TOLERANCE
    states = model.encode_image(pixels, ids, mask, question_mask=ones)
    assert difference(states, arrays[f"{case}_vision_out"]) < TOLERANCE
    assert difference(model.projector(states), arrays[f"{case}_translation_out"]) < TOLERANCE
    hidden, joined = model.encode(states, ids, mask)
    assert difference(hidden, arrays[f"{case}_encoder_out"]) < TOLERANCE
    assert np.array_equal(joined.numpy(), arrays[f"{case}_encoder_attention_mask"])
    start = torch.zeros(len(ids), 1, dtype=torch.int64)
    logits = model(pixels, ids, mask, decoder_input_ids=start, question_mask=ones).logits[:, 0]
    assert difference(logits, arrays[f"{case}_first_logits"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_identical(model: QAViTForVQA, variant: str, golden: Golden, case: str) -> None:
    arrays = golden(variant)
    pixels, ids, mask, ones = tensors(arrays, case)
    found = model.generate(pixels, ids, mask, question_mask=ones, max_new_tokens=12, do_sample=False).numpy()
    expected = arrays[f"{case}_generated_ids"]
    length = max(found.shape[1], expected.shape[1])
    found, expected = (np.pad(a, ((0, 0), (0, length - a.shape[1]))) for a in (found, expected))
    assert np.array_equal(found, expected)


@torch.no_grad()
def test_hidden_states_of_every_layer_and_the_reduced_question(
    model: QAViTForVQA, variant: str, golden: Golden
) -> None:
    arrays = golden(variant)
    pixels, ids, mask, ones = tensors(arrays, "s0")
    question = model.encode_question(ids, mask) if model.config.fused else None
    attend = torch.ones(1, 1, 1, ids.shape[1] + model.config.vision_config.tokens, dtype=torch.bool)
    states = model.vision.pre_layrnorm(model.vision.embeddings(pixels))
    expected = arrays["s0_vision_hidden_states"][:, None]  # (states, 1, tokens, vision)
    assert difference(states, expected[0]) < TOLERANCE
    for i, layer in enumerate(model.vision.layers):
        if question is not None and i == model.config.fused[0]:
            assert difference(layer.question_reducer(question), arrays["s0_first_fused_kv"]) < TOLERANCE
        states = layer(states, question, attend)
        assert difference(states, expected[i + 1]) < TOLERANCE
    assert ones.all()


@torch.no_grad()
def test_with_the_true_mask_an_answer_does_not_depend_on_its_batch(
    model: QAViTForVQA, variant: str, golden: Golden
) -> None:
    arrays = golden(variant)
    pixels, ids, mask, _ = tensors(arrays, "b")
    together = model.encode_image(pixels, ids, mask)
    for row in range(len(ids)):
        words = int(mask[row].sum())
        assert words < ids.shape[1] or row == int(mask.sum(1).argmax())
        one = slice(row, row + 1)
        alone = model.encode_image(pixels[one], ids[one, :words], mask[one, :words])
        assert float((alone - together[one]).abs().max()) < 2e-5
    if variant != "plain":  # the published code, which attends to padding, is far away
        published = torch.from_numpy(arrays["b_vision_out"])
        assert float((together - published).abs().max()) > 1.0
