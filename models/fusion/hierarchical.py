"""Hierarchical: places, their neighbourhoods and the whole read the other modality, each level for itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevqa.models.fusion.attention import HeadAttention, masked_mean
from edgevqa.models.fusion.base import Fusion, bias_of
from edgevqa.models.fusion.config import FusionConfig

LEVELS = ("place", "neighbourhood", "whole")


def neighbourhood_mean(states: Tensor, mask: Tensor | None, neighbours: int) -> Tensor:
    """Every place's mean with up to `neighbours` seen places on each side, in the order of the tokens.

    (batch, length, width) to the same; padding counts for nothing.
    """
    seen = torch.ones_like(states[:, :, :1]) if mask is None else mask.to(states.dtype)[:, :, None]
    size = 2 * neighbours + 1
    sums = functional.avg_pool1d((states * seen).transpose(1, 2), size, stride=1, padding=neighbours)
    shares = functional.avg_pool1d(seen.transpose(1, 2), size, stride=1, padding=neighbours)  # of `size` places
    return (sums / shares.clamp(min=1 / size)).transpose(1, 2)


class Levels(nn.Module):
    """One direction: three levels of queries, and a Linear over what they read, side by side."""

    def __init__(self, config: FusionConfig, key_heads: int | None) -> None:
        super().__init__()
        self.neighbours = config.neighbours
        self.levels = nn.ModuleDict(
            {level: HeadAttention(config.width, config.heads, key_heads=key_heads) for level in LEVELS}
        )
        self.merge = nn.Linear(config.width * len(LEVELS), config.width)

    def forward(self, states: Tensor, other: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """`states` (batch, queries, width), seen where `mask` says, read `other`: (batch, queries, width)."""
        whole = masked_mean(states, mask)[:, None]  # (batch, 1, width)
        near = neighbourhood_mean(states, mask, self.neighbours)
        queries = zip(LEVELS, (states, near, whole), strict=True)
        found = [self.levels[level](query, other, bias) for level, query in queries]
        out: Tensor = self.merge(torch.cat([value.expand_as(states) for value in found], dim=-1))
        return out


class Hierarchical(Fusion):
    """Three levels of multi-head attention in both directions, with LayerNorm after the addition."""

    key_heads: int | None = None

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.text_reads_image = Levels(config, self.key_heads)
        self.image_reads_text = Levels(config, self.key_heads)
        self.image_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return (
            self.image_norm(image + self.image_reads_text(image, text, image_mask, bias_of(text_mask))),
            self.text_norm(text + self.text_reads_image(text, image, text_mask, bias_of(image_mask))),
        )
