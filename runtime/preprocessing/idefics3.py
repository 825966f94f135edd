"""Idefics3's and SmolVLM's pictures: a grid of square tiles and the whole picture as one more, each with its own tokens.

Sources: Building and better understanding vision-language models (Laurençon et al. 2024), SmolVLM (Marafioti et al. 2025).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from PIL import Image

from edgevqa.runtime.errors import BundleError, ImageError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.fixed import MAX_RESIZED_PIXELS, RESAMPLE, preprocess

LONGEST_SIDE = 4096  # pixels, whatever the settings say
Ids = tuple[int, ...]


class TileTokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ids that stand for a picture. `picture` is repeated for the `places` embeddings of a tile.

    A tile is opened by `opening` and its row and column (`tiles[row][column]`), the whole picture by `whole`; `row_end`
    ends a row, `grid_end` the last one, and `opening` closes the picture.
    """

    picture: int
    places: int
    opening: Ids
    whole: Ids
    tiles: tuple[tuple[Ids, ...], ...]
    row_end: Ids
    grid_end: Ids


class TileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tile` is a tile's side and `longest_side` that of the resized picture, in pixels. Without `split` there is one tile."""

    tile: int
    longest_side: int
    split: bool
    tokens: TileTokens

    @property
    def most_tiles(self) -> int:
        """No picture has more tiles, the whole picture included."""
        tiles = self.tokens.tiles
        return sum(map(len, tiles)) + 1


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """The row `idefics3`: `pixel_values` (tiles, 3, tile, tile), the whole picture last, and the ids that stand for them.

    Raises `ImageError` for a picture that gives more tiles than the model has names for.
    """
    settings = settings_of(spec)
    tiles, rows, columns = cut(rgb, spec, settings)
    side = {"height": settings.tile, "width": settings.tile}
    square = msgspec.structs.replace(spec, resize=side, crop=None, **side)
    pixels = np.concatenate([preprocess(tile, square) for tile in tiles])
    return Prepared(inputs={"pixel_values": pixels}, expansion=expansion(rows, columns, settings.tokens))


def settings_of(spec: ImageSpec) -> TileSettings:
    """The specification's settings. Raises `BundleError` for others."""
    try:
        return msgspec.convert(spec.settings, TileSettings)
    except msgspec.ValidationError as error:
        raise BundleError(f"The manifest's preprocessing is wrong: {error}. Export the bundle again.") from error


def cut(rgb: Rgb, spec: ImageSpec, settings: TileSettings) -> tuple[list[Rgb], int, int]:
    """The tiles of a picture row by row and then the whole, and how many rows and columns; 0 where it is not split."""
    rgb = _resize(rgb, longest_size(rgb.shape[0], rgb.shape[1], settings.longest_side), spec)
    tile = settings.tile
    height, width = tiled_size(rgb.shape[0], rgb.shape[1], tile)
    rows, columns = height // tile, width // tile
    if not settings.split or (rows, columns) == (1, 1):
        return [rgb], 0, 0
    names = settings.tokens.tiles
    if rows > len(names) or columns > len(names[0]):
        raise ImageError(
            f"The picture gives {rows} x {columns} tiles (rows x columns); the model has names for {len(names)} x "
            f"{len(names[0])}. Crop it closer to a square, or make it smaller."
        )
    rgb = _resize(rgb, (height, width), spec)
    corners = [(row * tile, column * tile) for row in range(rows) for column in range(columns)]
    return [*(rgb[top : top + tile, left : left + tile] for top, left in corners), rgb], rows, columns


def longest_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width with the longer side `longest` and the other made even, as Hugging Face rounds them."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LONGEST_SIDE:
        width, height = LONGEST_SIDE, int(LONGEST_SIDE / ratio)
    elif height > width and height > LONGEST_SIDE:
        width, height = int(LONGEST_SIDE * ratio), LONGEST_SIDE
    return max(height, 1), max(width, 1)


def tiled_size(height: int, width: int, tile: int) -> tuple[int, int]:
    """Height and width rounded up to whole tiles, the shorter side after the longer one was."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile


def expansion(rows: int, columns: int, tokens: TileTokens) -> Ids:
    """The ids that stand for a picture of so many tiles."""
    places = (tokens.picture,) * tokens.places
    ids: list[int] = []
    for row in range(rows):
        for column in range(columns):
            ids += (*tokens.opening, *tokens.tiles[row][column], *places)
        ids += tokens.grid_end if row == rows - 1 else tokens.row_end
    return (*ids, *tokens.opening, *tokens.whole, *places, *tokens.opening)


def _resize(rgb: Rgb, size: tuple[int, int], spec: ImageSpec) -> Rgb:
    if size == rgb.shape[:2]:
        return rgb
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"A picture of {rgb.shape[1]} x {rgb.shape[0]} pixels would be resized to {size[1]} x {size[0]}, more than "
            f"{MAX_RESIZED_PIXELS:,} pixels. Crop it closer to a square."
        )
    return np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), RESAMPLE[spec.resample]))
