"""A picture and two questions without a data set: what latency is measured with."""

from __future__ import annotations

import numpy as np

from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec

FIRST_QUESTION = "what color is the shape on the left?"
NEXT_QUESTION = "how many shapes are there?"


def noise_picture(image: ImageSpec | None) -> Rgb:
    """The same coloured noise each time, RGB uint8, half as large again as what the vision graph takes."""
    height, width = (image.height, image.width) if image is not None else (64, 64)
    noise = np.random.default_rng(0)
    return noise.integers(0, 256, size=(height * 3 // 2, width * 3 // 2, 3), dtype=np.uint8)
