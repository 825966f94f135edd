"""Gated feed-forward: a pre-LN block in each direction, multi-head attention and then a gated feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from edgevqa.models.fusion.attention import HeadAttention
from edgevqa.models.fusion.base import TwoDirections
from edgevqa.models.fusion.config import FusionConfig


class GatedFeedForward(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.down(functional.gelu(self.gate(states)) * self.up(states))
        return out


class PreNormBlock(nn.Module):
    """One direction: states and other are normalised before they meet, and the states again before the feed-forward."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.norm, self.other_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention = HeadAttention(width, config.heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = GatedFeedForward(width, width * config.expansion)

    def forward(self, states: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
        """What is to be added to `states` (batch, queries, width) after reading `other` (batch, keys, width)."""
        attended = self.attention(self.norm(states), self.other_norm(other), bias)
        out: Tensor = attended + self.feed_forward(self.feed_forward_norm(states + attended))
        return out


class GatedPreNorm(TwoDirections):
    """A whole transformer block in each direction."""

    def reader(self) -> nn.Module:
        return PreNormBlock(self.config)
