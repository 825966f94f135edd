"""The header of a TensorRT plan, read without TensorRT: whose it is, and of which version.

Layout: a four-byte tag, a serialization version (u32), and from byte 24 the version's four parts, one byte each.
Source: TensorRT's sample sampleEngines.cpp; TensorRT-RTX 1.7.1's plans have the same offsets with another tag.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.targets import Flavour

HEADER_BYTES = 64
TAGS: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}

Version = tuple[int, int, int, int]


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the first bytes of a plan say."""

    flavour: Flavour
    version: Version


def parse_header(data: bytes, *, where: str) -> PlanHeader:
    """The header in the first bytes of a plan. Raises `BundleError` where it is none; `where` names the file."""
    if len(data) < HEADER_BYTES:
        raise BundleError(f"{where} has {len(data)} bytes; a TensorRT plan has more. Build the engine again.")
    flavour = TAGS.get(data[:4])
    if flavour is None:
        hint = "an ONNX graph; build it with 'edgevqa build'" if data[:1] == b"\x08" else "no TensorRT plan"
        raise BundleError(f"{where} begins with {data[:4]!r}: it is {hint}. Plans begin with 'ftrt' or 'vtrt'.")
    major, minor, patch, build = data[24:28]
    return PlanHeader(flavour=flavour, version=(major, minor, patch, build))


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


def readable_version(version: tuple[int, ...]) -> str:
    """`10.3.0.30`."""
    return ".".join(map(str, version))


def parse_version(text: str) -> Version:
    """`10.3.0.30`, or `10.3.0` with a build of 0."""
    parts = [int(part) for part in text.split(".")[:4] if part.isdecimal()]
    major, minor, patch, build = (*parts, 0, 0, 0, 0)[:4]
    return major, minor, patch, build
