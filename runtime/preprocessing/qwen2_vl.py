"""Qwen2-VL's pictures: any size, cut into patches on the host, with the windows in which the patches see each other.

Sources: Qwen2-VL (Wang et al. 2024), Qwen2.5-VL Technical Report (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.fixed import preprocess

MOST_TIMES_LONGER = 200
EMPTY = -1
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Grid = tuple[int, int]


class PatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a picture is sized and cut.

    `patch` in pixels, `merge` and `window` in patches a side, `frames` how often a still picture is repeated in time.
    The resized picture has between `least_pixels` and `most_pixels`, as far as its sides can be multiples of
    `patch * merge`.
    """

    patch: int
    merge: int
    frames: int
    window: int
    least_pixels: int
    most_pixels: int

    @property
    def factor(self) -> int:
        """What both sides are multiples of, in pixels."""
        return self.patch * self.merge

    @property
    def longest_side(self) -> int:
        """No resized picture has more patches a side: rounding makes it at most half as long again as its shape allows."""
        return math.isqrt(2 * MOST_TIMES_LONGER * max(self.most_pixels, self.factor**2)) // self.patch + self.merge

    @property
    def most_patches(self) -> int:
        """No resized picture has more patches: rounding up may add to a picture that is enlarged, or as thin as can be."""
        enlarged = (
            self.least_pixels + 2 * self.factor * math.isqrt(MOST_TIMES_LONGER * self.least_pixels) + self.factor**2
        )
        return max(self.most_pixels, MOST_TIMES_LONGER * self.factor**2, enlarged) // self.patch**2


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `qwen2_vl`: what `prepare_all` gives of one picture, with the grid of its embeddings.

    Raises `ImageError` for a picture that is more than 200 times longer than wide.
    """
    inputs, grids = prepare_all([rgb], spec)
    merge = settings_of(spec).merge
    return Prepared(inputs=inputs, grid=(1, grids[0][0] // merge, grids[0][1] // merge))


def prepare_all(pictures: Sequence[Rgb], spec: ImageSpec) -> tuple[dict[str, NDArray[Any]], list[Grid]]:
    """The vision graph's inputs for several pictures, one after the other, and each one's patches (high, wide)."""
    settings = settings_of(spec)
    patches: list[Floats] = []
    grids: list[Grid] = []
    for rgb in pictures:
        height, width = target_size(rgb.shape[0], rgb.shape[1], settings)
        size = {"height": height, "width": width}
        pixels = preprocess(rgb, msgspec.structs.replace(spec, height=height, width=width, resize=size, crop=None))
        patches.append(cut(pixels, settings))
        grids.append((height // settings.patch, width // settings.patch))
    return {"pixel_values": np.concatenate(patches), **layout(grids, settings)}, grids


def settings_of(spec: ImageSpec) -> PatchSettings:
    """The specification's settings. Raises `BundleError` for others."""
    try:
        return msgspec.convert(spec.settings, PatchSettings)
    except msgspec.ValidationError as error:
        raise BundleError(f"The manifest's preprocessing is wrong: {error}. Export the bundle again.") from error


def target_size(height: int, width: int, settings: PatchSettings) -> Grid:
    """Height and width after resizing: nearest multiples of the factor, scaled where there are too many or too few pixels."""
    if max(height, width) > MOST_TIMES_LONGER * min(height, width):
        raise ImageError(
            f"A picture of {width} x {height} pixels is too thin: the model takes pictures that are at most "
            f"{MOST_TIMES_LONGER} times longer than wide. Crop it closer to a square."
        )
    factor = settings.factor
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > settings.most_pixels:
        shrink = math.sqrt(height * width / settings.most_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if rounded[0] * rounded[1] < settings.least_pixels:
        grow = math.sqrt(settings.least_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def cut(pixels: Floats, settings: PatchSettings) -> Floats:
    """Pixels (1, channels, height, width) as patches (patches, channels * frames * patch * patch).

    Patches that are merged later stand together: merged places row by row, and in each its patches row by row.
    """
    _, channels, height, width = pixels.shape
    patch, merge = settings.patch, settings.merge
    blocks = pixels.reshape(channels, height // settings.factor, merge, patch, width // settings.factor, merge, patch)
    blocks = blocks.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    repeated = np.repeat(blocks, settings.frames, axis=5)
    return repeated.reshape(height * width // patch**2, channels * settings.frames * patch**2)


def layout(grids: Sequence[Grid], settings: PatchSettings) -> dict[str, Integers]:
    """Where the patches of several pictures lie, all int64.

    `patch_positions` (patches, 2) are row and column in the picture. `window_patches` (windows, window²) are the patches
    of each window and `frame_patches` (frames, the most patches) those of each picture, -1 where it has fewer;
    `window_places` and `frame_places` (patches,) tell where in them each patch stands.
    """
    positions: list[Integers] = []
    windows: list[Integers] = []
    counts = [high * wide for high, wide in grids]
    frames = np.full((len(grids), max(counts)), EMPTY, dtype=np.int64)
    first = 0
    for number, (grid, count) in enumerate(zip(grids, counts, strict=True)):
        positions.append(_positions(grid, settings.merge))
        own = _windows(grid, settings)
        windows.append(np.where(own == EMPTY, EMPTY, own + first))
        frames[number, :count] = np.arange(first, first + count)
        first += count
    window_patches = np.concatenate(windows)
    return {
        "patch_positions": np.concatenate(positions),
        "window_patches": window_patches,
        "window_places": _places(window_patches, first),
        "frame_patches": frames,
        "frame_places": _places(frames, first),
    }


def _positions(grid: Grid, merge: int) -> Integers:
    """Row and column of each patch (patches, 2) in the order of `cut`."""
    corners = np.indices(grid).reshape(2, grid[0] // merge, merge, grid[1] // merge, merge)
    return corners.transpose(1, 3, 2, 4, 0).reshape(-1, 2).astype(np.int64)


def _windows(grid: Grid, settings: PatchSettings) -> Integers:
    """The patches of each window of a picture, (windows, window²), and -1 beyond the picture's edge."""
    merge, side = settings.merge, settings.window // settings.merge
    high, wide = grid[0] // merge, grid[1] // merge
    rows, columns = -(-high // side), -(-wide // side)
    places = np.full((rows * side, columns * side), EMPTY, dtype=np.int64)
    places[:high, :wide] = np.arange(high * wide).reshape(high, wide)
    merged = places.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows * columns, side**2, 1)
    patches = merged * merge**2 + np.arange(merge**2)
    return np.where(merged == EMPTY, EMPTY, patches).reshape(rows * columns, settings.window**2)


def _places(groups: Integers, count: int) -> Integers:
    """Where each of `count` patches stands in `groups`, read row by row."""
    found = np.empty(count, dtype=np.int64)
    flat = groups.ravel()
    (filled,) = np.nonzero(flat != EMPTY)
    found[flat[filled]] = filled
    return found
