"""The head that says whether a fused picture and text belong together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevqa.models.fusion.attention import masked_mean


class MatchingHead(nn.Module):
    """The means of both modalities and their product, concatenated, through two Linears to the logits of (no, yes)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * width, width)
        self.classifier = nn.Linear(width, 2)

    def forward(self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
        """(batch, tokens, width) and (batch, words, width) to (batch, 2)."""
        seen, said = masked_mean(image, image_mask), masked_mean(text, text_mask)
        pooled = torch.cat([seen, said, seen * said], dim=-1)
        logits: Tensor = self.classifier(functional.gelu(self.hidden(pooled)))
        return logits
