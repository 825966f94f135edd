"""Pictures from files, bytes, Pillow images and arrays, as RGB uint8 arrays."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevqa.runtime.errors import ImageError

Rgb: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]"

MAX_PIXELS = 89_478_485
"""The size at which Pillow itself begins to suspect a decompression bomb: 256 MiB of RGB."""

_PILLOWS_MOST = 2 * MAX_PIXELS  # it opens nothing larger
_EXPECTED = "Expected a path, bytes, a PIL image or a numpy array."


def load_image(source: object, *, max_pixels: int = MAX_PIXELS) -> Rgb:
    """Read a picture as RGB uint8 (height, width, 3).

    Files: any mode Pillow reads, the first frame of an animation, turned as EXIF says. Transparency is dropped and the
    colours below it are kept, as `convert("RGB")` does and with it the Hugging Face processors; nothing is blended.
    16-bit pictures are scaled to 8 bits. Arrays: (height, width[, 1 | 3 | 4]), uint8, uint16 or floating in 0..1, their
    channels in the order RGB; for OpenCV frames pass frame[:, :, ::-1]. The result is a copy.

    The size is checked before anything is decoded. Raises `ImageError`: the picture, what is wrong, what to do.
    """
    if isinstance(source, np.ndarray):
        return _from_array(cast("NDArray[Any]", source), max_pixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, "the PIL image", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(cast("bytes", source))
        return _from_stream(lambda: io.BytesIO(data), f"the image bytes ({len(data):,})", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(cast("str | os.PathLike[str]", source)), max_pixels)
    raise ImageError(f"A picture was given as {type(source).__name__}. {_EXPECTED}")


def _from_file(name: str, max_pixels: int) -> Rgb:
    where = f"image '{name}'"
    try:
        path = Path(name)
        if path.is_dir():
            raise ImageError(f"{where} is a folder; expected a picture file. Name one file in it.")
        return _from_stream(lambda: path.open("rb"), where, max_pixels)
    except FileNotFoundError as error:
        hint = "Download it first." if "://" in name else "Check the path."
        raise ImageError(f"{where} does not exist. {hint}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{where} cannot be opened: {_reason(error)}. Check the path and its permissions.") from error


def _from_stream(opener: Callable[[], BinaryIO], where: str, max_pixels: int) -> Rgb:
    with opener() as stream:
        if not stream.read(1):
            raise ImageError(f"{where}: there are 0 bytes in it; expected a picture. Copy or export it again.")
        stream.seek(0)
        with _decoding(where, max_pixels), Image.open(stream) as image:
            return _from_pillow(image, where, max_pixels)


@contextmanager
def _decoding(where: str, max_pixels: int) -> Generator[None, None, None]:
    """Turn what Pillow's decoders raise on foreign bytes into `ImageError`, and keep their warnings quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{where} is not a picture in a format that Pillow reads. Expected PNG, JPEG, WebP, GIF, TIFF, BMP, ..."
        ) from error
    except Image.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))  # Pillow tells it in words alone, beside a limit of its own
        has = f"{where} has {int(size[0]):,}" if size else f"{where} has too many"
        raise ImageError(_too_many(has, min(max_pixels, _PILLOWS_MOST))) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ImageError(
            f"{where} cannot be decoded: {_reason(error)}. It is truncated or damaged: copy or export it again."
        ) from error


def _from_pillow(image: Image.Image, where: str, max_pixels: int) -> Rgb:
    _check_size(image.width, image.height, where, max_pixels)
    with _decoding(where, max_pixels):
        image.load()
        return _to_rgb(_upright(image), where)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; as it is where the EXIF block is damaged, for the pixels are not."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, OSError, ValueError, LookupError, TypeError, struct.error):
        return image


def _to_rgb(image: Image.Image, where: str) -> Rgb:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _grey_to_rgb(_deep_grey(image, where))
    if mode in ("La", "RGBa"):  # premultiplied alpha has a conversion to its plain form alone
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's own colours, also where they are transparent
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _deep_grey(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Grey pictures of more than 8 bits as uint8 (height, width).

    Integer pictures: 0..65535 is scaled to 0..255, as 16-bit PNG and TIFF mean it, unless no value is above 255.
    Floating pictures: 0..1 is scaled, 0..255 is rounded.
    """
    values = np.asarray(image)
    if image.mode == "F":
        return _from_unit_or_byte_range(values, where)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{where} has grey values from {low} to {high}; expected 0 to 65535. Scale it to 16 or 8 bits."
        )
    if image.mode == "I" and high <= 255:
        return values.astype(np.uint8)
    return _from_16_bits(values)


def _from_16_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_unit_or_byte_range(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 255.0):  # also false for NaN
        raise ImageError(f"{where} has values from {low:g} to {high:g}; expected 0..1 or 0..255. Scale it first.")
    scale = 255.0 if high <= 1.0 else 1.0
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _grey_to_rgb(grey: NDArray[np.uint8]) -> Rgb:
    return np.repeat(grey[:, :, None], 3, axis=2)  # (height, width, 3)


def _from_array(array: NDArray[Any], max_pixels: int) -> Rgb:
    where = f"the array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ImageError(
            f"{where} looks channels-first; expected (height, width, channels). Use array.transpose(1, 2, 0)."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{where} is no picture; expected (height, width) or (height, width, 1 | 3 | 4).")
    _check_size(array.shape[1], array.shape[0], where, max_pixels)
    values = _to_8_bits(array, where)
    if values.ndim == 2:
        return _grey_to_rgb(values)
    if values.shape[2] == 1:
        return _grey_to_rgb(values[:, :, 0])
    return np.array(values[:, :, :3], dtype=np.uint8, order="C")


def _to_8_bits(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return cast("NDArray[np.uint8]", array)
    if array.dtype == np.uint16:
        return _from_16_bits(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{where} has the wrong dtype; expected uint8, uint16 or floating values in 0..1. Convert it.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise ImageError(f"{where} has values from {low:g} to {high:g}; expected 0..1. Divide it by its white value.")
    return np.rint(array.astype(np.float64) * 255.0).astype(np.uint8)


def _check_size(width: int, height: int, where: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{where} is {width} x {height} pixels; expected at least 1 x 1.")
    if width * height > max_pixels:
        raise ImageError(_too_many(f"{where} is {width} x {height} = {width * height:,}", max_pixels))


def _too_many(told: str, most: int) -> str:
    return f"{told} pixels; at most {most:,} are read. Scale the picture down."


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__
