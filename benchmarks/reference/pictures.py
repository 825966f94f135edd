"""Augments easy-vqa's training pictures without changing any answer: mirrored, moved, another background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (64, 64, 3)


def augment(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return the picture, mirrored half of the time, its shape moved to any place with room, on a new background."""
    background = background_of(picture).astype(np.float32)
    difference = picture.astype(np.float32) - background
    distance = np.abs(difference).sum(-1)
    rows, columns = np.nonzero(distance.max(1))[0], np.nonzero(distance.max(0))[0]
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shape, cover = difference[cut], (distance[cut] / distance.max())[..., None]
    if rng.random() < 0.5:
        shape, cover = shape[:, ::-1], cover[:, ::-1]
    height, width = shape.shape[:2]
    top = int(rng.integers(picture.shape[0] - height + 1))
    left = int(rng.integers(picture.shape[1] - width + 1))
    fresh = rng.integers(230, 256, 3).astype(np.float32)
    result = np.broadcast_to(fresh, picture.shape).copy()
    # an edge pixel is a mixture of shape and background: exchange the background's part alone
    result[top : top + height, left : left + width] = shape + background + (1 - cover) * (fresh - background)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def background_of(picture: Picture) -> Picture:
    """Return the background's colour (3,): the median of the border, most of which no shape can cover."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    color: Picture = np.median(border, axis=0).astype(np.uint8)
    return color
