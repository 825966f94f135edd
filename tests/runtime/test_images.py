"""Pictures from every kind of source, and the refusals."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevqa.runtime.errors import ImageError
from edgevqa.runtime.images import load_image

RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[1, 2, 3], [200, 100, 50]]], dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(RGB).save(path)
    return path


def test_every_kind_of_source_gives_the_same_pixels(picture: Path) -> None:
    sources = [
        str(picture),
        picture,
        picture.read_bytes(),
        bytearray(picture.read_bytes()),
        memoryview(picture.read_bytes()),
        Image.open(picture),
        Image.fromarray(RGB),
        RGB,
        np.asfortranarray(RGB),
        RGB[:, :, ::-1][:, :, ::-1],
    ]
    for source in sources:
        pixels = load_image(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, RGB)


def test_the_result_does_not_share_memory_with_the_source() -> None:
    source = RGB.copy()
    pixels = load_image(source)
    source[:] = 0
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK", "YCbCr", "HSV", "1", "RGBX", "RGBa", "La", "PA"])
def test_every_mode_is_read_as_pillow_converts_it(mode: str) -> None:
    base = Image.fromarray(RGB)
    if mode in ("RGBa", "La"):
        image = base.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode == "PA":
        image = base.convert("P").convert("PA")
    else:
        image = base.convert(mode)
    plain = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    expected = np.asarray(image.convert(plain).convert("RGB"))
    np.testing.assert_array_equal(load_image(image), expected)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([9, 8, 7, 100, 110, 120, 250, 240, 230])
    for column in range(3):
        image.putpixel((column, 0), column)
    data = encoded(image, transparency=transparency)
    np.testing.assert_array_equal(load_image(data), [[[9, 8, 7], [100, 110, 120], [250, 240, 230]]])


def test_transparency_is_dropped_and_the_colours_below_stay() -> None:
    image = Image.new("RGBA", (2, 2), (40, 50, 60, 0))
    np.testing.assert_array_equal(load_image(image), np.full((2, 2, 3), (40, 50, 60)))
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))


def test_16_bit_pictures_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 257, 32896, 65535]], dtype=np.uint16)
    expected = np.repeat(np.array([[0, 0, 1, 128, 255]], dtype=np.uint8)[:, :, None], 3, axis=2)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    swapped = Image.frombytes("I;16B", (5, 1), deep.astype(">u2").tobytes())
    for source in (
        tmp_path / "deep.png",
        tmp_path / "deep.tiff",
        swapped,
        deep,
        Image.fromarray(deep.astype(np.int32)),
    ):
        np.testing.assert_array_equal(load_image(source), expected)


def test_32_bit_integers_below_256_are_8_bit_grey_values() -> None:
    image = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert load_image(image)[0, :, 0].tolist() == [0, 7, 255]


def test_floating_pictures_are_0_to_1_or_0_to_255() -> None:
    assert load_image(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)))[0, :, 2].tolist() == [0, 128, 255]
    assert load_image(Image.fromarray(np.array([[0.0, 9.6, 255]], dtype=np.float32)))[0, :, 2].tolist() == [0, 10, 255]
    for wrong in ([[0.0, 256.0]], [[-1.0, 5.0]], [[float("nan"), 0.0]]):
        with pytest.raises(ImageError, match=r"0\.\.1 or 0\.\.255"):
            load_image(Image.fromarray(np.array(wrong, dtype=np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_in_exif_is_applied(orientation: int) -> None:
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
    turned |= {5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(RGB), exif=exif)), turned[orientation])


def test_damaged_exif_does_not_cost_the_picture() -> None:
    for exif in (b"Exif\0\0no TIFF header here", b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12", b"\xff" * 40):
        data = encoded(Image.fromarray(RGB), exif=exif)
        np.testing.assert_array_equal(load_image(data), RGB)


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    np.testing.assert_array_equal(load_image(data), np.full((3, 4, 3), (255, 0, 0)))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB[:, :, 0], np.repeat(RGB[:, :, :1], 3, axis=2)),
        (RGB[:, :, :1], np.repeat(RGB[:, :, :1], 3, axis=2)),
        (np.concatenate([RGB, RGB[:, :, :1]], axis=2), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB[:, :, 0] > 128, np.repeat((RGB[:, :, :1] > 128) * 255, 3, axis=2)),
    ],
)
def test_arrays_of_every_shape_and_dtype(array: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(load_image(array), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"channels-first.*transpose\(1, 2, 0\)"),
        (np.zeros((1, 20, 30, 3), np.uint8), "no picture"),
        (np.zeros((20, 30, 2), np.uint8), "no picture"),
        (np.zeros(20, np.uint8), "no picture"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels"),
        (np.zeros((4, 0), np.uint8), "0 x 4 pixels"),
        (np.zeros((4, 4, 3), np.int64), "wrong dtype"),
        (np.full((4, 4, 3), 200.0), "from 200 to 200; expected 0..1"),
        (np.full((4, 4, 3), np.nan), "expected 0..1"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_a_picture_of_one_pixel() -> None:
    np.testing.assert_array_equal(load_image(encoded(Image.new("RGB", (1, 1), "blue"))), [[[0, 0, 255]]])


def test_files_that_are_no_pictures(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.jpg").write_text("these are words, not a picture\n" * 20)
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:-30])
    jpeg = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    cases = {
        "empty.png": "0 bytes",
        "notes.jpg": "not a picture",
        "half.png": "truncated or damaged",
        "half.jpg": "truncated or damaged",
        "absent.png": "does not exist",
        ".": "is a folder",
        "nul\0byte": "cannot be opened",
    }
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message) as caught:
            load_image(f"{tmp_path}/{name}")
        assert name in str(caught.value)


def test_a_url_is_answered_with_what_to_do() -> None:
    with pytest.raises(ImageError, match="Download it first"):
        load_image("https://example.com/dog.jpg")


@pytest.mark.parametrize("source", [None, 3, ["a.png"], 1.5])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(ImageError, match="Expected a path, bytes, a PIL image or a numpy array"):
        load_image(source)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_what_pillow_refuses_is_told_with_the_limit_that_counts() -> None:
    data = png_that_claims(20_000, 20_000)
    with pytest.raises(ImageError, match=r"has 400,000,000 pixels; at most 89,478,485 are read\. Scale"):
        load_image(data)
    with pytest.raises(ImageError, match="has 400,000,000 pixels; at most 1,000 are read"):
        load_image(data, max_pixels=1_000)
    with pytest.raises(ImageError, match="has 400,000,000 pixels; at most 178,956,970 are read"):
        load_image(data, max_pixels=1_000_000_000)


@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (30_000, 30_000), (2_000_000_000, 2_000_000_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(ImageError, match=r"pixels; at most 89,478,485 are read"):  # Pillow's warning: an error
        load_image(png_that_claims(width, height))


def test_the_limit_of_pixels_is_the_callers_to_set() -> None:
    assert load_image(RGB, max_pixels=6).shape == (3, 2, 3)
    for source in (RGB, Image.fromarray(RGB), encoded(Image.fromarray(RGB))):
        with pytest.raises(ImageError, match="2 x 3 = 6 pixels; at most 5"):
            load_image(source, max_pixels=5)


def test_a_zero_sized_pillow_image_is_refused() -> None:
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_what_the_system_refuses_to_open_is_a_picture_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / ("n" * 300), tmp_path / "file" / "x.png", tmp_path / "loop"):
        with pytest.raises(ImageError, match="cannot be opened"):
            load_image(path)


def test_an_array_is_copied_and_may_be_a_turned_view() -> None:
    frame = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    rgb = load_image(frame[:, :, ::-1])
    np.testing.assert_array_equal(rgb[0, 0], [2, 1, 0])
    frame[:] = 0
    assert rgb.any()
