"""What the mechanisms are built of: masks, one attention read in plain operators, and multi-head attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# exp() of it is exactly 0 in float32, and it is a finite FP16 number, so that a graph can be cast without care
MASKED = -30000.0


def key_bias(mask: Tensor) -> Tensor:
    """(batch, keys) of 1 (seen) and 0 to (batch, 1, keys) of 0 and `MASKED`, to be added to scores."""
    hidden: Tensor = 1.0 - mask.to(torch.float32)
    return hidden[:, None, :] * MASKED


def read(scores: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(scores + bias) values, with scores (..., queries, keys) and values (..., keys, width)."""
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ values


def masked_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the places that `mask` (batch, length) shows: (batch, length, width) to (batch, width)."""
    if mask is None:
        return states.mean(dim=1)
    weights = mask.to(states.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True)
    pooled: Tensor = (weights[:, None, :] @ states).squeeze(1)
    return pooled


class BilinearAttention(nn.Module):
    """Scores are query W key^T, with a learned W of its own; what is read are the other's states as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.scores = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
        """`states` (batch, queries, width) read `other` (batch, keys, width): (batch, queries, width)."""
        scores = (self.scores(states) * self.scale) @ other.transpose(-1, -2)
        return read(scores, other, bias)


class HeadAttention(nn.Module):
    """Multi-head attention; with fewer `key_heads` than `heads`, queries of several heads share keys and values."""

    def __init__(self, width: int, heads: int, *, key_heads: int | None = None) -> None:
        """`key_heads` is `heads`, or 1 (multi-query)."""
        super().__init__()
        head = width // heads
        self.heads, self.key_heads = heads, heads if key_heads is None else key_heads
        self.scale = head**-0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, self.key_heads * head)
        self.v_proj = nn.Linear(width, self.key_heads * head)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
        """`states` (batch, queries, width) read `other` (batch, keys, width): (batch, queries, width)."""
        query = _split(self.q_proj(states) * self.scale, self.heads)
        key, value = _split(self.k_proj(other), self.key_heads), _split(self.v_proj(other), self.key_heads)
        found = read(query @ key.transpose(-1, -2), value, None if bias is None else bias[:, None])
        out: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return out


def _split(states: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * head) to (batch, heads, length, head)."""
    split: Tensor = states.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)
