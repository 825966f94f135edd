"""Coordinated: each modality gets an embedding of its own, and only their cosine is compared (contrastive learning)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgevqa.models.fusion.attention import masked_mean
from edgevqa.models.fusion.config import FusionConfig


class Coordinated(nn.Module):
    """A Linear for each modality on the mean of its states, and a learned scale of the cosines."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.image_projection = nn.Linear(config.image_width, config.width, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def embed_image(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (image, tokens, image_width) to embeddings of length 1, (image, width)."""
        return unit(self.image_projection(masked_mean(states, mask)))

    def embed_text(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (batch, words, text_width) to embeddings of length 1, (batch, width)."""
        return unit(self.text_projection(masked_mean(states, mask)))

    def scale(self) -> Tensor:
        """What cosines are multiplied by before the softmax."""
        return self.logit_scale.exp()


def unit(embeds: Tensor) -> Tensor:
    """Every row divided by its length."""
    lengths: Tensor = embeds.norm(dim=-1, keepdim=True)
    return embeds / lengths
