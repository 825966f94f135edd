"""Turns pictures into what the reference model sees."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.reference.recipe import CLIP_MEAN, CLIP_STD


def to_pixel_values(pictures: Tensor) -> Tensor:
    """(image, 64, 64, 3) uint8 to normalised (image, 3, 64, 64) float32, as preprocessor_config.json says."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
