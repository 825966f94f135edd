"""Preprocessing: equal to the golden arrays and to the Hugging Face image processor."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import load_image
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing.fixed import preprocess

CLIP = ImageSpec(
    height=56,
    width=56,
    resize={"shortest_edge": 56},
    resample="bicubic",
    crop={"height": 56, "width": 56},
    rescale_factor=1 / 255,
    mean=[0.48145466, 0.4578275, 0.40821073],
    std=[0.26862954, 0.26130258, 0.27577711],
)
SIZES = [(97, 131), (133, 80), (40, 61), (56, 56), (57, 57), (1, 1), (1, 40), (300, 7), (55, 113), (112, 56), (59, 59)]
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_golden_pixels(variant: str, golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    arrays = golden(variant)
    for number in range(3):
        values = preprocess(load_image(arrays[f"image{number}"]), CLIP)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_allclose(values[0], arrays["pixel_values"][number], rtol=0, atol=1e-6)


def hugging_face(rgb: np.ndarray, spec: ImageSpec) -> np.ndarray:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    options: dict[str, Any] = {
        "do_resize": spec.resize is not None,
        "size": spec.resize,
        "resample": RESAMPLE[spec.resample],
        "do_center_crop": spec.crop is not None,
        "crop_size": spec.crop,
        "do_rescale": spec.rescale_factor is not None,
        "rescale_factor": spec.rescale_factor,
        "do_normalize": spec.mean is not None,
        "image_mean": spec.mean,
        "image_std": spec.std,
    }
    processor = module.CLIPImageProcessorPil(**{name: value for name, value in options.items() if value is not None})
    from PIL import Image

    return np.stack(processor(Image.fromarray(rgb))["pixel_values"])


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_hugging_face_for_every_size(size: tuple[int, int]) -> None:
    rgb = noise(*size)
    np.testing.assert_allclose(preprocess(rgb, CLIP), hugging_face(rgb, CLIP), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        *({"resample": name} for name in RESAMPLE),
        {"height": 70, "width": 63, "crop": {"height": 70, "width": 63}},
        {"height": 31, "width": 40, "crop": {"height": 31, "width": 40}},
        {"resize": {"height": 48, "width": 72}, "height": 48, "width": 72, "crop": None},
        {"resize": {"height": 20, "width": 20}, "height": 33, "width": 28, "crop": {"height": 33, "width": 28}},
        {"mean": None, "std": None},
        {"mean": None, "std": None, "rescale_factor": None},
        {"rescale_factor": 1 / 127.5, "mean": [1.0, 1.0, 1.0], "std": [1.0, 1.0, 1.0]},
    ],
    ids=str,
)
def test_equal_to_hugging_face_for_every_step(change: dict[str, Any]) -> None:
    spec = msgspec.structs.replace(CLIP, **change)
    for size in ((97, 131), (41, 30)):
        rgb = noise(*size)
        np.testing.assert_allclose(preprocess(rgb, spec), hugging_face(rgb, spec), rtol=0, atol=1e-6)


def test_without_resize_and_crop_the_pixels_pass() -> None:
    spec = msgspec.structs.replace(CLIP, resize=None, crop=None, rescale_factor=None, mean=None, std=None)
    rgb = noise(56, 56)
    np.testing.assert_array_equal(preprocess(rgb, spec)[0], rgb.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_a_thin_strip_is_refused_before_it_takes_memory(size: tuple[int, int]) -> None:
    spec = msgspec.structs.replace(CLIP, resize={"shortest_edge": 336})
    rgb = np.zeros((*size, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="too thin"):
            preprocess(rgb, spec)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": None}, "graph takes 56 x 56"),
        ({"resize": {"longest_edge": 4}}, "'shortest_edge'"),
        ({"crop": {"shortest_edge": 56}}, "expected 'height' and 'width'"),
        ({"mean": [0.5]}, "1 values of mean; expected 3"),
    ],
)
def test_a_specification_that_leads_nowhere(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        preprocess(noise(30, 60), msgspec.structs.replace(CLIP, **change))
