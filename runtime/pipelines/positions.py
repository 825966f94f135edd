"""Positions of a prompt's tokens: one after the other, or in time, height and width where a picture has a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Grid = tuple[int, int, int]


def place(ids: Sequence[int], image_token: int, grids: Sequence[Grid]) -> tuple[Integers, int]:
    """Positions of a prompt with pictures, and the position that the next token has.

    Without `grids` int64 (1, length), counted from 0. With one for each picture int64 (3, length), as in M-RoPE (Qwen2-VL,
    2024): a picture's tokens go through time, height and width from where they begin, and what follows begins after the
    largest of them.
    """
    if not grids:
        return np.arange(len(ids), dtype=np.int64)[None], len(ids)
    positions = np.zeros((3, len(ids)), dtype=np.int64)
    remaining = iter(grids)
    following, index = 0, 0
    while index < len(ids):
        if ids[index] != image_token:
            positions[:, index] = following
            index, following = index + 1, following + 1
            continue
        corners = np.indices(next(remaining)).reshape(3, -1)
        stop = index + corners.shape[1]
        positions[:, index:stop] = following + corners
        following, index = int(positions[:, index:stop].max()) + 1, stop
    return positions, following
