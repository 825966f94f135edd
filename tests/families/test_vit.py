"""The family `vit`, on a small random model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.export.samples import PICTURES
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract

LABELS = ["cat", "dog", "ball", "car", "tree", "house", "none"]


class TestViT(FamilyContract):
    family = "vit"
    graphs = frozenset({"classifier"})

    @classmethod
    def make(cls, folder: Path) -> None:
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
        )
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = ViTImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return None

    def test_labels_are_ranked_and_may_be_chosen_from(self, bundle_path: Path) -> None:
        image = PICTURES / sorted(file.name for file in PICTURES.glob("*.png"))[0]
        with Pipeline.load(bundle_path) as pipeline:
            answer = pipeline.answer(image, "", top_k=3)
            chosen = pipeline.answer(image, "", choices=["dog", "ball"])
            with pytest.raises(ConfigError, match="'fish' is none of the model's 7 labels"):
                pipeline.answer(image, "", choices=["fish"])
        assert answer.scores is not None
        assert len(answer.scores) == 3
        assert next(iter(answer.scores)) == answer.text
        assert list(answer.scores.values()) == sorted(answer.scores.values(), reverse=True)
        assert answer.confidence == pytest.approx(answer.scores[answer.text])
        assert chosen.scores is not None
        assert sum(chosen.scores.values()) == pytest.approx(1)
        assert chosen.text in ("dog", "ball")
