"""Multi-head: several attention heads in both directions."""

from __future__ import annotations

from torch import nn

from edgevqa.models.fusion.attention import HeadAttention
from edgevqa.models.fusion.base import NormalizedDirections


class MultiHead(NormalizedDirections):
    """`config.heads` heads with keys and values of their own."""

    def reader(self) -> nn.Module:
        return HeadAttention(self.config.width, self.config.heads)
