"""The family `vit`, on a small random model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.export import ExportOptions, export
from edgevqa.export.samples import PICTURES
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.pipeline import Pipeline
from tests.families.contract import FamilyContract, picture

LABELS = ["cat", "dog", "ball", "car", "tree", "house", "none"]


def save(model_class: Any, folder: Path, **others: Any) -> None:
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
    model_class(config, **others).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


class ViTContract(FamilyContract):
    family = "vit"

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        processor = ViTImageProcessorPil.from_pretrained(folder)
        return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        return None


class TestViT(ViTContract):
    graphs = frozenset({"classifier"})

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViTForImageClassification, folder)

    def test_labels_are_ranked_and_may_be_chosen_from(self, bundle_path: Path) -> None:
        image = PICTURES / sorted(file.name for file in PICTURES.glob("*.png"))[0]
        with Pipeline.load(bundle_path) as pipeline:
            answer = pipeline.answer(image, "", top_k=3)
            chosen = pipeline.answer(image, "", choices=["dog", "ball"])
            with pytest.raises(ConfigError, match="'fish' is none of the model's 7 labels"):
                pipeline.answer(image, "", choices=["fish"])
            with pytest.raises(ConfigError, match="gives answers, not features"):
                pipeline.features(image)
        assert answer.scores is not None
        assert len(answer.scores) == 3
        assert next(iter(answer.scores)) == answer.text
        assert list(answer.scores.values()) == sorted(answer.scores.values(), reverse=True)
        assert answer.confidence == pytest.approx(answer.scores[answer.text])
        assert chosen.scores is not None
        assert sum(chosen.scores.values()) == pytest.approx(1)
        assert chosen.text in ("dog", "ball")

    def test_classes_may_share_a_label(self, folder: Path, tmp_path: Path) -> None:
        """As two classes of ImageNet are called `crane`: the eager model's label is what every answer begins with."""
        shared = tmp_path / "shared"
        shutil.copytree(folder, shared)
        config = json.loads((shared / "config.json").read_text())
        config["id2label"] = dict.fromkeys(config["id2label"], "crane")
        (shared / "config.json").write_text(json.dumps(config))
        export(str(shared), tmp_path / "bundle", ExportOptions())
        with Pipeline.load(tmp_path / "bundle", backend="onnxruntime") as pipeline:
            answer = pipeline.answer(picture(40, 50), "", top_k=7)
        assert answer.text == f"crane ({answer.tokens[0]})"
        assert answer.scores is not None
        assert set(answer.scores) == {f"crane ({number})" for number in range(len(LABELS))}


class TestViTFeatures(ViTContract):
    """A checkpoint without head and pooler."""

    graphs = frozenset({"encoder"})
    quantized = False

    @classmethod
    def make(cls, folder: Path) -> None:
        save(ViTModel, folder, add_pooling_layer=False)

    def test_features_are_the_eager_models(self, folder: Path, bundle_path: Path) -> None:
        rgb = picture(40, 50)
        pixels = torch.from_numpy(self.processed(folder, rgb)["pixel_values"])
        with torch.no_grad():
            states = ViTModel.from_pretrained(folder, add_pooling_layer=False)(pixels).last_hidden_state[0]
        with Pipeline.load(bundle_path, backend="onnxruntime") as pipeline:
            found = pipeline.features(rgb)
        assert list(found) == ["last_hidden_state"]
        np.testing.assert_allclose(found["last_hidden_state"], states.numpy(), rtol=0, atol=1e-5)
