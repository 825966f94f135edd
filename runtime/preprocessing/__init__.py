"""The table of processors: what turns a picture into the inputs of a vision graph. One row a kind of preprocessing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec

PROCESSORS: dict[str, str] = {
    "cropped": "edgevqa.runtime.preprocessing.cropped:prepare",
    "anyres": "edgevqa.runtime.preprocessing.anyres:prepare",
    "fixed": "edgevqa.runtime.preprocessing.fixed:prepare",
    "idefics3": "edgevqa.runtime.preprocessing.idefics3:prepare",
    "qwen2_vl": "edgevqa.runtime.preprocessing.qwen2_vl:prepare",
    "vilt": "edgevqa.runtime.preprocessing.vilt:prepare",
}
"""`module:function`; the function takes RGB uint8 (height, width, 3) and the specification, and gives a `Prepared`."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A picture as the graphs take it.

    `inputs` are arrays by the name of a graph's input, floating ones float32. `expansion` are the ids that stand for the
    picture in a prompt, with the image token's id at each place of an embedding; None: that id alone, as often as the
    picture has embeddings. `grid` are (frames, height, width) of the embeddings, where their places in the picture count,
    and `more_grids` those of further pictures where a question is about several.
    """

    inputs: dict[str, NDArray[Any]]
    expansion: tuple[int, ...] | None = None
    grid: tuple[int, int, int] | None = None
    more_grids: tuple[tuple[int, int, int], ...] = ()

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """The grid of each picture; none where places do not count."""
        return () if self.grid is None else (self.grid, *self.more_grids)


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


def collate(pictures: Sequence[Prepared]) -> dict[str, NDArray[Any]]:
    """The inputs of one batch. Rows of different length are filled with zeros at the end; a mask among them tells."""
    inputs: dict[str, NDArray[Any]] = {}
    for name in pictures[0].inputs:
        rows = [each.inputs[name] for each in pictures]
        longest = max(row.shape[1] for row in rows)
        inputs[name] = np.concatenate([_lengthened(row, longest) for row in rows])
    return inputs


def _lengthened(row: NDArray[Any], length: int) -> NDArray[Any]:
    if row.shape[1] == length:
        return row
    rest = np.zeros((row.shape[0], length - row.shape[1], *row.shape[2:]), dtype=row.dtype)
    return np.concatenate([row, rest], axis=1)
