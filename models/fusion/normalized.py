"""Normalized: two-way attention whose sums go through a LayerNorm."""

from __future__ import annotations

from torch import nn

from edgevqa.models.fusion.attention import BilinearAttention
from edgevqa.models.fusion.base import NormalizedDirections


class Normalized(NormalizedDirections):
    """As `TwoWay`, with LayerNorm after each addition."""

    def reader(self) -> nn.Module:
        return BilinearAttention(self.config.width)
