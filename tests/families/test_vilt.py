"""The family `vilt`, on small random models: the head that answers and the head that ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from edgevqa.export import export
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError, ImageError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.preprocessing.vilt import positions
from tests.families.contract import QUESTION, SIZES, FamilyContract, picture
from tests.families.tiny.tokenizers import bert_tokenizer

LABELS = ["yes", "no", "2", "red", "blue", "net"]
PATCH = 8


def save(model_class: Any, folder: Path, **others: Any) -> None:
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    config = ViltConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=PATCH,
        vocab_size=len(tokenizer),
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        initializer_range=0.2,
        **others,
    )
    model = model_class(config)
    with torch.no_grad():  # the table of positions begins with zeros
        model.vilt.embeddings.position_embeddings.normal_(std=0.5)
        model.vilt.embeddings.cls_token.normal_(std=0.5)
    model.save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "size_divisor": PATCH}
    ViltProcessor(ViltImageProcessorPil(**sizes), tokenizer).save_pretrained(folder)


def patches(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels (1, 3, height, width) as (1, patches, 3, patch, patch), block by block."""
    rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    blocks = [
        pixels[0, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        for row in range(rows)
        for column in range(columns)
    ]
    return np.stack(blocks)[None]


class ViltContract(FamilyContract):
    family = "vilt"

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        found = ViltImageProcessorPil.from_pretrained(folder)(rgb, return_tensors="np")
        return {
            "pixel_values": patches(found["pixel_values"]),
            "patch_mask": patches(found["pixel_mask"][:, None])[:, :, 0, 0, 0],
        }

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        processor = ViltProcessor.from_pretrained(folder, use_fast=False)
        ids: list[int] = processor(images=picture(48, 48), text=question)["input_ids"]
        return list(ids)

    def test_a_thin_picture_is_refused(self, bundle_path: Path) -> None:
        spec = Bundle.open(bundle_path).manifest.image
        assert spec is not None
        with pytest.raises(
            ImageError, match="of 400 x 20 pixels is too thin: resized to at most 53 pixels, less than 8"
        ):
            prepare(picture(20, 400), spec)


class TestViltAnswers(ViltContract):
    graphs = frozenset({"classifier"})

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViltForQuestionAnswering, folder)

    def test_pictures_of_different_size_answer_in_a_batch_as_alone(self, bundle_path: Path) -> None:
        questions = (QUESTION, "how many?")
        pairs = [(picture(*size, seed), text) for seed, text in enumerate(questions) for size in (*SIZES, (64, 40))]
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            together = pipeline.answer_pairs(pairs, top_k=len(LABELS))
            alone = [pipeline.answer(image, text, top_k=len(LABELS)) for image, text in pairs]
        for batched, single in zip(together, alone, strict=True):
            assert batched.scores is not None
            assert batched.scores == pytest.approx(single.scores, abs=1e-5)
        assert len({round(answer.log_probability, 4) for answer in alone}) == len(pairs)

    def test_the_likeliest_labels_have_scores(self, bundle_path: Path) -> None:
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            answer = pipeline.answer(picture(48, 80), QUESTION, top_k=3)
        assert answer.scores is not None
        assert len(answer.scores) == 3
        assert answer.text == next(iter(answer.scores))
        assert answer.text in LABELS
        assert answer.confidence == pytest.approx(max(answer.scores.values()))


class TestViltMatches(ViltContract):
    graphs = frozenset({"matcher"})
    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViltForImageAndTextRetrieval, folder)

    def test_texts_are_ranked_as_by_the_eager_model(self, folder: Path, bundle_path: Path) -> None:
        texts = ["a picture of a dog", "is the ball red?", "two"]
        model = ViltForImageAndTextRetrieval.from_pretrained(folder).eval()
        processor = ViltProcessor.from_pretrained(folder, use_fast=False)
        rgb = picture(48, 80)
        with torch.no_grad():
            logits = [float(model(**processor(images=rgb, text=text, return_tensors="pt")).logits) for text in texts]
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            answer = pipeline.answer(rgb, "", choices=texts)
            single = pipeline.answer(rgb, texts[0])
        shares = np.exp(logits) / np.exp(logits).sum()
        assert answer.scores == pytest.approx(dict(zip(texts, shares.tolist(), strict=True)), abs=1e-4)
        assert single.scores is not None
        assert single.scores["yes"] == pytest.approx(1 / (1 + np.exp(-logits[0])), abs=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 7), (6, 1), (5, 9), (2, 3)])
def test_positions_are_those_of_torch(rows: int, columns: int) -> None:
    side, width = 4, 5
    table = torch.randn(side * side, width, generator=torch.Generator().manual_seed(1))
    grid = table.T.reshape(1, width, side, side)
    expected = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=True)
    index, weight = positions(rows, columns, side)
    found = (table.numpy()[index] * weight[..., None]).sum(axis=1)
    np.testing.assert_allclose(found, expected[0].flatten(1).T.numpy(), rtol=0, atol=1e-6)


def test_patches_drawn_at_random_are_refused(tmp_path: Path) -> None:
    save(ViltForQuestionAnswering, tmp_path, max_image_length=6)
    with pytest.raises(CheckpointError, match="max_image_length 6: of up to 24 patches"):
        export(str(tmp_path), tmp_path / "bundle")
