"""Visual projection and two-way cross-attention, as it is put between a vision and a language model.

The picture's states go through a Linear and a LayerNorm to the language model's width; then language reads vision and
vision reads language, with multi-head attention.
"""

from __future__ import annotations

from torch import nn

from edgevqa.models.fusion.attention import HeadAttention
from edgevqa.models.fusion.base import NormalizedDirections
from edgevqa.models.fusion.config import FusionConfig


class CrossAttention(NormalizedDirections):
    """The text keeps its states where it already has the block's width."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.image_in = nn.Sequential(
            nn.Linear(config.image_width, config.width), nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        )

    def reader(self) -> nn.Module:
        return HeadAttention(self.config.width, self.config.heads)
