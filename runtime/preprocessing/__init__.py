"""The table of processors: what turns a picture into the inputs of a vision graph. One row a kind of preprocessing."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec

PROCESSORS: dict[str, str] = {
    "fixed": "edgevqa.runtime.preprocessing.fixed:prepare",
}
"""`module:function`; the function takes RGB uint8 (height, width, 3) and the specification, and gives a `Prepared`."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A picture as the graphs take it.

    `inputs` are arrays by the name of a graph's input, floating ones float32. `expansion` are the ids that stand for the
    picture in a prompt, with the image token's id at each place of an embedding; None: that id alone, as often as the
    picture has embeddings. `grid` are (frames, height, width) of the embeddings, where their places in the picture count.
    """

    inputs: dict[str, NDArray[Any]]
    expansion: tuple[int, ...] | None = None
    grid: tuple[int, int, int] | None = None


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """Run the specification's processor. Raises `BundleError` for one that this version does not know."""
    if spec.processor not in PROCESSORS:
        raise BundleError(
            f"The bundle asks for the processor '{spec.processor}'; this edgevqa has {', '.join(PROCESSORS)}. "
            "Upgrade edgevqa."
        )
    module, _, name = PROCESSORS[spec.processor].partition(":")
    prepared: Prepared = getattr(importlib.import_module(module), name)(rgb, spec)
    return prepared
