"""Perceiver's pictures: a central square that is a share of the shorter side, then the size that the model takes."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.fixed import centre_crop, preprocess


class CropSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The crop's height and width as shares of the picture's shorter side; above 1 zeros are added around."""

    height_share: float
    width_share: float


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `cropped`: `pixel_values` (1, 3, spec.height, spec.width), cropped before it is resized.

    Raises `ImageError` where less than a pixel is left, and what `preprocess` raises.
    """
    try:
        settings = msgspec.convert(spec.settings, CropSettings)
    except msgspec.ValidationError as error:
        raise BundleError(f"The manifest's preprocessing is wrong: {error}. Export the bundle again.") from error
    shorter = min(rgb.shape[:2])
    height, width = int(settings.height_share * shorter), int(settings.width_share * shorter)
    if not height or not width:
        raise ImageError(
            f"A picture of {rgb.shape[1]} x {rgb.shape[0]} pixels is too small: nothing is left after cropping."
        )
    return Prepared(inputs={"pixel_values": preprocess(centre_crop(rgb, height, width), spec)})
