"""Pixels as the vision graph takes them: the manifest's resize, crop, rescaling and normalisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

MAX_RESIZED_PIXELS = 1 << 25
"""Pillow holds 4 bytes a pixel: a thin strip may not take more than 128 MiB when its short side is resized."""


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `fixed`: `pixel_values` (1, 3, spec.height, spec.width); raises what `preprocess` raises."""
    return Prepared(inputs={"pixel_values": preprocess(rgb, spec)})


def preprocess(rgb: Rgb, spec: ImageSpec) -> NDArray[np.float32]:
    """Turn RGB uint8 (height, width, 3) into pixel values, float32 (1, 3, spec.height, spec.width).

    The steps and their rounding are those of the Hugging Face image processors (Pillow resize on 8 bits, the longer
    side cut to an integer, centre crop that pads with zeros where the picture is smaller, then rescale and normalise).

    Raises `ImageError` for a picture so thin that resizing would take gigabytes, and `BundleError` for a
    specification that does not lead to `spec.height` x `spec.width`.
    """
    pixels = _crop(_resize(rgb, spec), spec)
    if pixels.shape[:2] != (spec.height, spec.width):
        raise BundleError(
            f"The manifest's preprocessing gives {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), but "
            f"the graph takes {spec.height} x {spec.width}. Export the bundle again."
        )
    return normalise(pixels, spec)


def resized_size(height: int, width: int, resize: dict[str, int] | None) -> tuple[int, int]:
    """Height and width after the resize step; with `shortest_edge` the longer side is cut to an integer."""
    if resize is None:
        return height, width
    if set(resize) == {"shortest_edge"}:
        edge = resize["shortest_edge"]
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)
    return _height_width(resize, "resize")


def _resize(rgb: Rgb, spec: ImageSpec) -> Rgb:
    height, width = rgb.shape[:2]
    target = resized_size(height, width, spec.resize)
    if target == (height, width):
        return rgb  # Pillow copies here as well
    if target[0] * target[1] > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"A picture of {width} x {height} pixels is too thin: resized to {target[1]} x {target[0]} it would pass "
            f"the limit of {MAX_RESIZED_PIXELS:,} pixels. Crop it closer to a square."
        )
    image = Image.fromarray(rgb).resize((target[1], target[0]), RESAMPLE[spec.resample])
    return np.asarray(image)


def _crop(pixels: Rgb, spec: ImageSpec) -> Rgb:
    return pixels if spec.crop is None else centre_crop(pixels, *_height_width(spec.crop, "crop"))


def centre_crop(pixels: Rgb, height: int, width: int) -> Rgb:
    """Cut the centre, or pad with zeros around a picture that is smaller; an odd pixel over goes as in Hugging Face."""
    rows = _centre(pixels.shape[0], height)
    columns = _centre(pixels.shape[1], width)
    cut = pixels[max(rows, 0) : max(rows, 0) + height, max(columns, 0) : max(columns, 0) + width]
    if cut.shape[:2] == (height, width):
        return cut
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = max(-rows, 0), max(-columns, 0)
    canvas[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return canvas


def _centre(have: int, want: int) -> int:
    """The first row (or column) of the crop; negative where that many rows are padded before the picture."""
    return (have - want) // 2


def normalise(pixels: Rgb, spec: ImageSpec) -> NDArray[np.float32]:
    """Look every pixel up in a table of the 256 values that rescaling and normalising can give a channel."""
    table = _value_table(spec)
    values = np.empty((1, 3, *pixels.shape[:2]), dtype=np.float32)  # (1, 3, height, width)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=values[0, channel])
    return values


def _value_table(spec: ImageSpec) -> NDArray[np.float32]:
    """Float32 (3, 256), with the roundings of Hugging Face: rescaling in float64, the rest in float32."""
    levels = np.arange(256, dtype=np.float64)
    factor = 1.0 if spec.rescale_factor is None else spec.rescale_factor
    table = np.tile((levels * factor).astype(np.float32), (3, 1))
    if spec.mean is not None:
        table -= _channels(spec.mean, "mean")
    if spec.std is not None:
        table /= _channels(spec.std, "std")
    return table


def _channels(values: list[float], name: str) -> NDArray[np.float32]:
    if len(values) != 3:
        raise BundleError(
            f"The manifest's preprocessing has {len(values)} values of {name}; expected 3. Export the bundle again."
        )
    return np.array(values, dtype=np.float32)[:, None]


def _height_width(size: dict[str, int], step: str) -> tuple[int, int]:
    if set(size) != {"height", "width"}:
        raise BundleError(
            f"The manifest's preprocessing has {step} {size}; expected 'height' and 'width'"
            + (", or 'shortest_edge'" if step == "resize" else "")
            + ". Export the bundle again."
        )
    return size["height"], size["width"]
