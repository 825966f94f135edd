"""Two-way: text reads the picture and the picture reads the text, each with an attention matrix of its own."""

from __future__ import annotations

from torch import nn

from edgevqa.models.fusion.attention import BilinearAttention
from edgevqa.models.fusion.base import TwoDirections


class TwoWay(TwoDirections):
    """The two directions share nothing."""

    def reader(self) -> nn.Module:
        return BilinearAttention(self.config.width)
