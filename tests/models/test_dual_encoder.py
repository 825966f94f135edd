"""Dual encoders: towers from folders and configurations, their own format, padding, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from edgevqa.models.dual_encoder import DualEncoder
from edgevqa.models.fusion import FUSIONS
from edgevqa.runtime.errors import CheckpointError, ConfigError
from tests.families.tiny.dual_encoders import SIZE, TEXT, VISION, dual_encoder

TOLERANCE = 1e-5


def texts(words: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 400, (2, words), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, words - 2 :] = 0
    return ids * mask, mask


def pixels(pictures: int = 2) -> torch.Tensor:
    return torch.randn(pictures, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


def outcome(model: DualEncoder, images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(images, ids, mask)
    result: Any = found.similarity if found.match_logits is None else found.match_logits
    assert isinstance(result, torch.Tensor)
    return result


def towers(folder: Path, vision: str) -> tuple[Path, Path]:
    """Folders of the hub's format: a vision model, here with a head that the tower lacks, and a BERT with its pooler."""
    torch.manual_seed(1)
    settings = {name: value for name, value in VISION[vision].items() if name != "model_type"}
    made: Any = (
        ViTForImageClassification(ViTConfig(**settings)) if vision == "vit" else ResNetModel(ResNetConfig(**settings))
    )
    made.save_pretrained(folder / "vision")
    text = {name: value for name, value in TEXT.items() if name != "model_type"}
    BertModel(BertConfig(**text, vocab_size=400, num_hidden_layers=2)).save_pretrained(folder / "text")
    return folder / "vision", folder / "text"


@pytest.mark.parametrize("vision", VISION)
def test_towers_come_from_folders_and_a_saved_model_is_the_same(vision: str, tmp_path: Path) -> None:
    seeing, reading = towers(tmp_path, vision)
    settings = {} if vision == "vit" else {"image_size": SIZE}
    fusion = {"mechanism": "multi_head", "width": 16, "heads": 2}
    model = DualEncoder.from_towers(seeing, reading, fusion=fusion, max_text_tokens=32, **settings).eval()
    ids, mask = texts()
    theirs: Any = (ViTModel if vision == "vit" else ResNetModel).from_pretrained(seeing).eval()
    bert = BertModel.from_pretrained(reading).eval()
    with torch.no_grad():
        expected = theirs(pixels()).last_hidden_state
        states = expected if vision == "vit" else expected.flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.vision(pixels()), states, rtol=0, atol=TOLERANCE)
        words = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(model.text(ids, mask)[mask.bool()], words[mask.bool()], rtol=0, atol=TOLERANCE)
    model.save_pretrained(tmp_path / "saved")
    again = DualEncoder.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    torch.testing.assert_close(outcome(again, pixels(), ids, mask), outcome(model, pixels(), ids, mask))


@pytest.mark.parametrize("mechanism", FUSIONS)
def test_a_padded_batch_gives_each_row_what_it_has_alone(mechanism: str) -> None:
    model = dual_encoder(mechanism)
    ids, mask = texts()
    together = outcome(model, pixels(), ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = outcome(model, pixels()[row : row + 1], ids[row : row + 1, :length], mask[row : row + 1, :length])
        mine = together[row, row] if mechanism == "coordinated" else together[row]
        torch.testing.assert_close(
            mine, alone[0, 0] if mechanism == "coordinated" else alone[0], rtol=0, atol=TOLERANCE
        )


def test_one_picture_goes_with_every_text() -> None:
    model = dual_encoder("hierarchical")
    ids, mask = texts()
    picture = pixels(1)
    once = outcome(model, picture, ids, mask)
    torch.testing.assert_close(once, outcome(model, picture.expand(2, -1, -1, -1), ids, mask), rtol=0, atol=TOLERANCE)


def changed(folder: Path, **values: Any) -> Path:
    """A saved model with a few values of its configuration changed."""
    dual_encoder("joint").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for path, value in values.items():
        part = config
        *parents, name = path.split("__")
        for parent in parents:
            part = part[parent]
        part[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config__model_type": "swin"}, "vision tower of model_type 'swin' is unknown; use one of vit, resnet"),
        ({"text_config__hidden": 3}, "text_config has the unknown keys hidden; expected those of BertConfig"),
        ({"fusion__mechanism": "early"}, "mechanism 'early' is unknown; use one of coordinated, joint"),
        (
            {"fusion__image_width": 48},
            r"takes states of 48 \(image\) and 24 \(text\) features; the towers give 32 and 24",
        ),
        ({"image_size": 64}, "image_size is 64; the vision model's is 32"),
        ({"max_text_tokens": 99}, "max_text_tokens is 99; the text model takes at most 48"),
        ({"colour": 1}, "config.json is not a dual encoder's configuration: .*colour"),
        ({"model_type": "cross_attention"}, "the fusion mechanism 'joint'; expected 'cross_attention'"),
    ],
)
def test_wrong_configurations_name_what_is_wrong(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        DualEncoder.from_pretrained(changed(tmp_path, **values))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    dual_encoder("joint").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["head.other.weight"] = state.pop("head.classifier.weight").clone()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: head.classifier.weight; 1 unexpected: head.other.weight"):
        DualEncoder.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        DualEncoder.from_pretrained(tmp_path / "nothing")


def test_a_folder_that_is_no_tower_is_refused(tmp_path: Path) -> None:
    seeing, reading = towers(tmp_path, "vit")
    fusion = {"mechanism": "joint", "width": 16}
    with pytest.raises(ConfigError, match="text tower of model_type 'vit' is unknown; use one of bert"):
        DualEncoder.from_towers(seeing, seeing, fusion=fusion)
    state = load_file(reading / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "layer.1.output" not in k}, reading / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"lacks weights of BertModel: encoder.layer.1.output"):
        DualEncoder.from_towers(seeing, reading, fusion=fusion, max_text_tokens=32)
