"""Reads a picture file of a data set as RGB, with an error that names it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from edgevqa.runtime.errors import ImageError


def open_rgb(path: Path) -> Image.Image:
    """Return the picture, turned as its EXIF says, in RGB. Raises `ImageError` that names the file."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(f"The picture {path} of the data set cannot be read: {error}.") from error
