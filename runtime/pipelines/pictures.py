"""Pictures as flows take them: one, or several that a question is about together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import msgspec

from edgevqa.runtime.caches import picture_key
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.images import ImageSource, load_image
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.pipelines.base import Picture
from edgevqa.runtime.preprocessing import Prepared

Images: TypeAlias = "ImageSource | Sequence[ImageSource]"
"""A picture, or a list (or tuple) of those that a question is about."""


def load_pictures(images: Images, spec: ImageSpec | None, *, max_pixels: int) -> Picture:
    """Read one picture, or several as one. Raises `ImageError`, and `ConfigError` for several where the model takes one."""
    if not isinstance(images, (list, tuple)):
        rgb = load_image(images, max_pixels=max_pixels)
        return Picture(rgb, picture_key(rgb))
    given = cast("Sequence[Any]", images)
    if not given:
        raise ConfigError("The list of pictures is empty. Give at least one.")
    parts = tuple(load_pictures(image, None, max_pixels=max_pixels) for image in given)
    if len(parts) == 1:
        return parts[0]
    if spec is None or spec.separator is None:
        raise ConfigError(
            f"A question about {len(parts)} pictures was asked; the bundle's model takes one. Ask about each, or take a model "
            "that takes several, such as Qwen2.5-VL or SmolVLM (`edgevqa families` lists what can be exported)."
        )
    key = hashlib.blake2b(b"".join(part.key for part in parts), digest_size=32)
    return Picture(parts[0].rgb, key.digest(), parts=parts)


def join_prepared(parts: Sequence[tuple[Prepared, int]], *, separator: Sequence[int], image_token: int) -> Prepared:
    """How several pictures stand in a prompt, one after the other; each with the number of its embeddings."""
    ids: list[int] = []
    for prepared, slots in parts:
        ids += separator if ids else ()
        ids += (image_token,) * slots if prepared.expansion is None else prepared.expansion
    first, *others = (prepared for prepared, _ in parts)
    grids = tuple(grid for prepared in others for grid in prepared.grids)
    return msgspec.structs.replace(first, inputs={}, expansion=tuple(ids), more_grids=grids)
