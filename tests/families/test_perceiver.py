"""The family `perceiver`, on small random models of its three ways to read pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    PerceiverConfig,
    PerceiverForImageClassificationConvProcessing,
    PerceiverForImageClassificationFourier,
    PerceiverForImageClassificationLearned,
    PerceiverForMaskedLM,
)
from transformers.models.perceiver.image_processing_pil_perceiver import PerceiverImageProcessorPil

from edgevqa.export import export
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckpointError, ImageError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from tests.families.contract import FamilyContract, picture

LABELS = ["cat", "dog", "ball", "car", "tree"]
SIZE = 16


def save(model_class: Any, folder: Path, *, size: int = SIZE, **processor: Any) -> None:
    torch.manual_seed(0)
    config = PerceiverConfig(
        num_latents=8,
        d_latents=32,
        num_blocks=2,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=1,
        image_size=SIZE,
        initializer_range=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    model = model_class(config)
    with torch.no_grad():  # as after training: the layer's own statistics are 0 and 1
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.get_buffer("running_mean"))
                torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    model.save_pretrained(folder)
    sides = {"height": size, "width": size}
    larger = {"height": size * 8 // 7, "width": size * 8 // 7}
    PerceiverImageProcessorPil(**{"size": sides, "crop_size": larger, **processor}).save_pretrained(folder)


class PerceiverContract(FamilyContract):
    family = "perceiver"
    graphs = frozenset({"classifier"})
    quantized = False
    model_class: ClassVar[Any]

    @classmethod
    def make(cls, folder: Path) -> None:
        save(cls.model_class, folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = PerceiverImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return None


class TestPerceiverLearned(PerceiverContract):
    quantized = True
    model_class = PerceiverForImageClassificationLearned

    def test_labels_are_ranked(self, bundle_path: Path) -> None:
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            answer = pipeline.answer(picture(30, 20), "", top_k=2)
        assert answer.scores is not None
        assert answer.text == next(iter(answer.scores))
        assert len(answer.scores) == 2

    def test_a_picture_of_which_nothing_is_left_is_refused(self, bundle_path: Path) -> None:
        spec = Bundle.open(bundle_path).manifest.image
        assert spec is not None
        with pytest.raises(ImageError, match="of 9 x 1 pixels is too small: nothing is left after cropping"):
            prepare(picture(1, 9), spec)


class TestPerceiverFourier(PerceiverContract):
    model_class = PerceiverForImageClassificationFourier


class TestPerceiverConvProcessing(PerceiverContract):
    model_class = PerceiverForImageClassificationConvProcessing

    @classmethod
    def make(cls, folder: Path) -> None:
        save(cls.model_class, folder, size=30, do_center_crop=False)


def test_learned_positions_need_their_size(tmp_path: Path) -> None:
    save(PerceiverForImageClassificationLearned, tmp_path, size=24)
    with pytest.raises(
        CheckpointError, match="makes pictures of 24 x 24 pixels; the model has learned the positions of 16"
    ):
        export(str(tmp_path), tmp_path / "bundle")


def test_other_heads_are_refused_by_name(tmp_path: Path) -> None:
    config = PerceiverConfig(num_latents=4, d_latents=16, d_model=16, num_self_attends_per_block=1)
    PerceiverForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"\['PerceiverForMaskedLM'\]; expected one of PerceiverForImageClassificationL"
    ):
        export(str(tmp_path), tmp_path / "bundle")
