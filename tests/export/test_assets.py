"""Preprocessing and tokenizer files beside a model: what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil

from edgevqa.export.assets import image_spec, text_spec, tokenizer_bytes
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.preprocessing.fixed import preprocess

OLD: dict[str, Any] = {
    "size": 56,
    "crop_size": 56,
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
NEW: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 60},
    "crop_size": {"height": 56, "width": 56},
    "resample": 2,
    "do_normalize": False,
}
SQUARE: dict[str, Any] = {"size": {"height": 56, "width": 56}, "do_center_crop": False}


def folder_with(tmp_path: Path, processor: object) -> Path:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


@pytest.mark.parametrize("processor", [OLD, NEW, SQUARE], ids=["old", "new", "square"])
def test_pixels_are_those_of_transformers(tmp_path: Path, processor: dict[str, Any]) -> None:
    spec = image_spec(folder_with(tmp_path, processor), size=56)
    picture = np.random.default_rng(0).integers(0, 256, (70, 91, 3), dtype=np.uint8)
    expected = CLIPImageProcessorPil(**processor)(picture, return_tensors="np")["pixel_values"]
    assert np.abs(preprocess(picture, spec) - expected).max() < 1e-6


def test_absent_keys_mean_what_transformers_takes_them_for(tmp_path: Path) -> None:
    spec = image_spec(folder_with(tmp_path, {}), size=224)
    picture = np.random.default_rng(0).integers(0, 256, (300, 240, 3), dtype=np.uint8)
    expected = CLIPImageProcessorPil()(picture, return_tensors="np")["pixel_values"]
    assert np.abs(preprocess(picture, spec) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resample": 9}, "resample is 9"),
        ({"resample": -1}, "resample is -1"),
        ({"resample": "bicubic"}, "resample"),
        ({"size": "56"}, "size"),
        ({"crop_size": {"shortest_edge": 56}}, "crop_size has the keys"),
        ({"crop_size": 48}, "takes 56 x 56"),
        ({"do_center_crop": False}, "takes 56 x 56"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"image_std": [1.0, 1.0]}, "image_std"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ],
)
def test_processors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        image_spec(folder_with(tmp_path, {**OLD, **change}), size=56)


def test_files_that_are_missing_or_none(tmp_path: Path, golden_root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json does not exist"):
        image_spec(tmp_path, size=56)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        image_spec(tmp_path, size=56)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_bytes(tmp_path)
    limits: dict[str, int] = {"max_tokens": 30, "pad_token_id": 0, "eos_token_id": 1}
    for broken in (b"", b"{}", b"\xff\xfe"):
        with pytest.raises(CheckpointError, match="not a tokenizer file"):
            text_spec(broken, cleaning="none", vocab_size=300, **limits)
    own = (golden_root / "pretrained" / "t5-tiny" / "tokenizer.json").read_bytes()
    with pytest.raises(CheckpointError, match="highest id is 266"):
        text_spec(own, cleaning="none", vocab_size=100, **limits)
    assert text_spec(own, cleaning="none", vocab_size=275, **limits).special_token_ids == [
        0,
        1,
        2,
        *range(167, 275),
    ]  # the extra ids, and ids past the tokenizer
