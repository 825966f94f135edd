"""ViLT's pictures: any size, cut into patches on the host, with the places of each patch in the table of positions.

Source: ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (ICML 2021).
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.fixed import preprocess

CORNERS = 4
_Floats = NDArray[np.float32]
_Integers = NDArray[np.int64]


class PatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a picture is sized and cut; all in pixels but `table_side`.

    The shorter side becomes `shortest` unless the longer would pass `longest`, and both are cut to multiples of
    `divisor`, itself one of `patch`. `table_side` is the side of the square table of learned positions; `patches` is the
    largest number that a picture can have.
    """

    shortest: int
    longest: int
    divisor: int
    patch: int
    table_side: int
    patches: int


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `vilt`: what `cut` gives of the resized picture.

    Raises `ImageError` for a picture so thin that nothing of its shorter side would be left.
    """
    try:
        settings = msgspec.convert(spec.settings, PatchSettings)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The manifest's preprocessing for ViLT is wrong: {error}. Export the bundle again."
        ) from error
    height, width = target_size(rgb.shape[0], rgb.shape[1], settings)
    if not height or not width:
        raise ImageError(
            f"A picture of {rgb.shape[1]} x {rgb.shape[0]} pixels is too thin: resized to at most {settings.longest} "
            f"pixels, less than {settings.divisor} are left of its shorter side. Crop it closer to a square."
        )
    size = {"height": height, "width": width}
    pixels = preprocess(rgb, msgspec.structs.replace(spec, height=height, width=width, resize=size, crop=None))
    return Prepared(inputs=dict(cut(pixels, patch=settings.patch, table_side=settings.table_side)))


def target_size(height: int, width: int, settings: PatchSettings) -> tuple[int, int]:
    """Height and width after resizing, with the roundings of Hugging Face."""
    scale = settings.shortest / min(height, width)
    if height < width:
        sides: tuple[float, float] = (settings.shortest, scale * width)
    else:
        sides = (scale * height, settings.shortest)
    if max(sides) > settings.longest:
        scale = settings.longest / max(sides)
        sides = (scale * sides[0], scale * sides[1])
    divisor = settings.divisor
    return int(sides[0] + 0.5) // divisor * divisor, int(sides[1] + 0.5) // divisor * divisor


def cut(pixels: _Floats, *, patch: int, table_side: int) -> dict[str, _Floats | _Integers]:
    """Pixels (1, channels, height, width) as what the graph takes of one picture.

    `pixel_values` (1, patches, channels, patch, patch) row by row, `patch_mask` (1, patches) of ones, and the position of
    each patch as a mean of four rows of the table: `position_index` and `position_weight` (1, patches, 4). Row 0 of the
    table is the class token's.
    """
    _, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    blocks = pixels.reshape(channels, rows, patch, columns, patch).transpose(1, 3, 0, 2, 4)
    index, weight = positions(rows, columns, table_side)
    return {
        "pixel_values": np.ascontiguousarray(blocks.reshape(1, rows * columns, channels, patch, patch)),
        "patch_mask": np.ones((1, rows * columns), dtype=np.int64),
        "position_index": index[None] + 1,
        "position_weight": weight[None],
    }


def positions(rows: int, columns: int, table_side: int) -> tuple[_Integers, _Floats]:
    """Bilinear interpolation of a square table to a grid, corners on corners: indices and weights (rows * columns, 4)."""
    (top, bottom, down), (left, right, along) = _axis(rows, table_side), _axis(columns, table_side)
    index = np.stack([_pairs(row * table_side, column) for row in (top, bottom) for column in (left, right)], axis=-1)
    one = np.float32(1)
    weight = np.stack([_grid(row, column) for row in (one - down, down) for column in (one - along, along)], axis=-1)
    return index.reshape(-1, CORNERS), weight.reshape(-1, CORNERS)


def _axis(count: int, side: int) -> tuple[_Integers, _Integers, _Floats]:
    """For each of `count` places along one axis the table's places before and after it, and the share of the latter."""
    step = np.float32(side - 1) / np.float32(count - 1) if count > 1 else np.float32(0)
    place = np.arange(count, dtype=np.float32) * step
    before = np.minimum(place.astype(np.int64), side - 1)
    return before, np.minimum(before + 1, side - 1), place - before.astype(np.float32)


def _pairs(row: _Integers, column: _Integers) -> _Integers:
    return row[:, None] + column[None]


def _grid(row: _Floats, column: _Floats) -> _Floats:
    return row[:, None] * column[None]
