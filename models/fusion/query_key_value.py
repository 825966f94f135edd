"""Query, key, value: attention with a projection for each of the three, in each direction, of one head."""

from __future__ import annotations

from torch import Tensor, nn

from edgevqa.models.fusion.attention import read
from edgevqa.models.fusion.base import NormalizedDirections


class SingleHead(nn.Module):
    """Attention of one head, without a projection of what was read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, states: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
        """`states` (batch, queries, width) read `other` (batch, keys, width): (batch, queries, width)."""
        scores = (self.q_proj(states) * self.scale) @ self.k_proj(other).transpose(-1, -2)
        return read(scores, self.v_proj(other), bias)


class QueryKeyValue(NormalizedDirections):
    """Each direction has three projections of its own."""

    def reader(self) -> nn.Module:
        return SingleHead(self.config.width)
