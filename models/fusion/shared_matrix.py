"""Shared matrix: one matrix of affinities, read along its rows by the text and along its columns by the picture."""

from __future__ import annotations

from torch import Tensor, nn

from edgevqa.models.fusion.attention import read
from edgevqa.models.fusion.base import Fusion, bias_of
from edgevqa.models.fusion.config import FusionConfig


class SharedMatrix(Fusion):
    """As `TwoWay`, with one W for both directions, so that the scores are computed once."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.affinity = nn.Linear(config.width, config.width, bias=False)

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = (self.affinity(text) * self.config.width**-0.5) @ image.transpose(-1, -2)  # (batch, words, tokens)
        return (
            image + read(scores.transpose(-1, -2), text, bias_of(text_mask)),
            text + read(scores, image, bias_of(image_mask)),
        )
