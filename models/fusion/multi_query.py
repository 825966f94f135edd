"""Multi-query: several query heads that share one head of keys and values, in both directions."""

from __future__ import annotations

from torch import nn

from edgevqa.models.fusion.attention import HeadAttention
from edgevqa.models.fusion.base import NormalizedDirections


class MultiQuery(NormalizedDirections):
    """`config.heads` query heads, one key and value head: less to keep of a picture."""

    def reader(self) -> nn.Module:
        return HeadAttention(self.config.width, self.config.heads, key_heads=1)
