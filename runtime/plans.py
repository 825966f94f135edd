"""The header of a TensorRT plan, read without TensorRT: whose it is, and of which version.

Layout: a four-byte tag, a serialization version (u32), and from byte 24 the version's four parts, one byte each.
Source: TensorRT's sample sampleEngines.cpp; TensorRT-RTX 1.7.1's plans have the same offsets with another tag, and from
byte 16 the plan's size (u64): measured on engines of every kind of graph. TensorRT's own is not known to be there.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.targets import Flavour

HEADER_BYTES = 64
SIZED_FLAVOUR: Flavour = "tensorrt-rtx"
SIZED_FROM = (1, 7)  # the version, and the serialization version, of which the size in the header is known
SIZED_SERIALIZATION = 0
TAGS: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}

Version = tuple[int, int, int, int]


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the first bytes of a plan say; `size_bytes` is the whole file's, None where that is not known to be there."""

    flavour: Flavour
    version: Version
    size_bytes: int | None = None


def parse_header(data: bytes, *, where: str) -> PlanHeader:
    """The header in the first bytes of a plan. Raises `BundleError` where it is none; `where` names the file."""
    if len(data) < HEADER_BYTES:
        raise BundleError(f"{where} has {len(data)} bytes; a TensorRT plan has more. Build the engine again.")
    flavour = TAGS.get(data[:4])
    if flavour is None:
        hint = "an ONNX graph; build it with 'edgevqa build'" if data[:1] == b"\x08" else "no TensorRT plan"
        raise BundleError(f"{where} begins with {data[:4]!r}: it is {hint}. Plans begin with 'ftrt' or 'vtrt'.")
    major, minor, patch, build = data[24:28]
    version = (major, minor, patch, build)
    serialization, size_bytes = struct.unpack("<4xI8xQ", data[:24])
    sized = flavour == SIZED_FLAVOUR and version[:2] >= SIZED_FROM and serialization == SIZED_SERIALIZATION
    return PlanHeader(flavour=flavour, version=version, size_bytes=size_bytes if sized else None)


def is_plan(path: Path) -> bool:
    """Whether the file begins as a plan does."""
    try:
        with path.open("rb") as file:
            return file.read(4) in TAGS
    except OSError:
        return False


def read_header(path: Path) -> PlanHeader:
    """The header of a plan's file. Raises `BundleError` where it is none, or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. Give the file of an engine.") from error
    return parse_header(data, where=str(path))


def read_whole(path: Path) -> PlanHeader:
    """As `read_header`. Raises `BundleError` also for a plan that is not as long as its header says, where it says so."""
    header, found = read_header(path), path.stat().st_size
    if header.size_bytes is not None and header.size_bytes != found:
        what = "it was cut off" if found < header.size_bytes else "something was added to it"
        raise BundleError(
            f"{path} has {found:,} bytes; its header says {header.size_bytes:,}: {what}. Copy it again, or build it "
            "again: edgevqa build BUNDLE --target TARGET"
        )
    return header


def readable_version(version: tuple[int, ...]) -> str:
    """`10.3.0.30`, or `10.3.0` where the build is not known."""
    return ".".join(map(str, version if version[3:] != (0,) else version[:3]))


def parse_version(text: str) -> Version:
    """`10.3.0.30`, or `10.3.0` with a build of 0: it is not known. JetPack's Python package tells three numbers alone."""
    parts = [int(part) for part in text.split(".")[:4] if part.isdecimal()]
    major, minor, patch, build = (*parts, 0, 0, 0, 0)[:4]
    return major, minor, patch, build
