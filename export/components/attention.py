"""Attention in the form that traces to the fewest operators: MatMul, Add, Softmax, MatMul."""

from __future__ import annotations

import torch
from torch import Tensor

# Low enough that exp() gives exactly 0 in float32, and still a finite FP16 number, so that a cast graph needs no care
MASKED = -30000.0


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * head) to (batch, heads, length, head)."""
    split: Tensor = states.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """(batch, heads, length, head) to (batch, length, heads * head)."""
    return states.transpose(1, 2).flatten(2)


def key_bias(mask: Tensor) -> Tensor:
    """(batch, keys) of 0 and 1 to an additive bias (batch, 1, 1, keys) of `MASKED` and 0."""
    hidden: Tensor = 1.0 - mask.to(torch.float32)
    return hidden[:, None, None, :] * MASKED


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(query key^T + bias) value; every argument (batch, heads, length, head), query already scaled."""
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ value
