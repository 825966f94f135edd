"""Projected: each modality has a projection into one space, and attention happens there."""

from __future__ import annotations

from torch import Tensor, nn

from edgevqa.models.fusion.attention import read
from edgevqa.models.fusion.base import NormalizedDirections


class DotProduct(nn.Module):
    """Attention without parameters: scores are dot products of the states themselves."""

    def forward(self, states: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
        """`states` (batch, queries, width) read `other` (batch, keys, width): (batch, queries, width)."""
        scores = (states * states.shape[-1] ** -0.5) @ other.transpose(-1, -2)
        return read(scores, other, bias)


class Projected(NormalizedDirections):
    """The projections are the only Linears: what they make is query, key and value at once."""

    def entry(self, width: int) -> nn.Module:
        return nn.Linear(width, self.config.width)

    def reader(self) -> nn.Module:
        return DotProduct()
