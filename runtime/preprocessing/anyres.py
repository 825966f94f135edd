"""Pictures as LLaVA-NeXT cuts them: the whole picture, small, and tiles of the resolution that fits it best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.fixed import RESAMPLE, normalise

Size = tuple[int, int]


class AnyresSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a picture may be cut into.

    `grid_pinpoints` are resolutions (height, width) in pixels, `patches` the vision tower's patches along a tile's side.
    """

    grid_pinpoints: list[Size]
    patches: int


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `anyres`: `pixel_values` (tiles, 3, spec.height, spec.width) and `pack_index` (slots,) int64.

    The index takes rows of the tiles' embeddings, one tile after another; the row after the last is the line break that
    ends each row of patches. The borders that padding added are left out.
    """
    settings = msgspec.convert(spec.settings, AnyresSettings)
    size = rgb.shape[0], rgb.shape[1]
    best = best_resolution(size, settings.grid_pinpoints)
    if best[0] % spec.height or best[1] % spec.width:
        raise BundleError(f"The manifest cuts {best} into tiles of {spec.height} x {spec.width}. Export it again.")
    fitted = _resize(rgb, fitted_size(size, best), spec)
    canvas = np.zeros((*best, 3), dtype=np.uint8)
    top, left = (best[0] - fitted.shape[0]) // 2, (best[1] - fitted.shape[1]) // 2
    canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    rows, columns = best[0] // spec.height, best[1] // spec.width
    tiles = (
        canvas.reshape(rows, spec.height, columns, spec.width, 3).swapaxes(1, 2).reshape(-1, spec.height, spec.width, 3)
    )
    whole = _resize(rgb, (spec.height, spec.width), spec)
    pixels = np.concatenate([normalise(tile, spec) for tile in (whole, *tiles)])
    return Prepared(inputs={"pixel_values": pixels, "pack_index": pack_index(size, (rows, columns), settings.patches)})


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The resolution (height, width) that keeps most of the picture's pixels, and of those the one that wastes least."""

    def fitness(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[1] / size[1], candidate[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=fitness)


def fitted_size(size: Size, best: Size) -> Size:
    """Height and width of the picture when it fills `best` as far as its shape allows."""
    wide, high = best[1] / size[1], best[0] / size[0]
    if wide < high:
        return min(math.ceil(size[0] * wide), best[0]), best[1]
    return best[0], min(math.ceil(size[1] * high), best[1])


def pack_index(size: Size, grid: Size, patches: int) -> NDArray[np.int64]:
    """Rows of the embeddings, int64 (slots,): the whole picture's, then the tiles' line by line, each with a line break."""
    rows, columns = grid[0] * patches, grid[1] * patches
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    tile = 1 + (y // patches) * grid[1] + x // patches
    index = tile * patches**2 + (y % patches) * patches + x % patches
    index = _unpadded(index, size)
    line_break = np.full((len(index), 1), (1 + grid[0] * grid[1]) * patches**2)
    lines = np.concatenate([index, line_break], axis=1).reshape(-1)
    return np.concatenate([np.arange(patches**2), lines]).astype(np.int64)


def most_slots(settings: AnyresSettings, tile: Size) -> int:
    """The most embeddings that a picture takes."""
    area = settings.patches**2
    grids = [(height // tile[0], width // tile[1]) for height, width in settings.grid_pinpoints]
    return max(area + rows * columns * area + rows * settings.patches for rows, columns in grids)


def most_tiles(settings: AnyresSettings, tile: Size) -> int:
    """The most tiles that a picture is cut into, the whole picture among them."""
    return 1 + max((height // tile[0]) * (width // tile[1]) for height, width in settings.grid_pinpoints)


def _unpadded(index: NDArray[np.int64], size: Size) -> NDArray[np.int64]:
    """What is left of a grid (rows, columns) without the patches that hold only padding."""
    rows, columns = index.shape
    if size[1] / size[0] > columns / rows:
        high = int(round(size[0] * (columns / size[1]), 7))
        border = (rows - high) // 2
        return index[border : rows - border]
    wide = int(round(size[1] * (rows / size[0]), 7))
    border = (columns - wide) // 2
    return index[:, border : columns - border]


def _resize(rgb: Rgb, size: Size, spec: ImageSpec) -> Rgb:
    if rgb.shape[:2] == size:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), RESAMPLE[spec.resample]))
