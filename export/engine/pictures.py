"""The fewest tokens that a picture takes in a prompt, of those that are known."""

from __future__ import annotations

from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.preprocessing.idefics3 import expansion, settings_of


def least_picture(manifest: Manifest, most: int) -> int:
    """Of a picture that takes at most `most`: all of them where pictures have one size, else those of the smallest one.

    Pictures of several sizes have tokens for each tile or patch, so those of the fewest are a share of the most.
    """
    image = manifest.image
    if image is None:
        return 0
    if image.processor == "fixed" or not image.axes:
        return most if image.processor == "fixed" else 0
    if image.processor == "idefics3":
        return len(expansion(0, 0, settings_of(image).tokens))
    return min(most * least // highest for least, _, highest in image.axes.values())
