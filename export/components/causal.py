"""What decoder-only graphs share: pictures among tokens, masks of past and new slots, and attention to both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import MASKED, split_heads
from edgevqa.export.spec import GraphPlan

KeyValue = tuple[Tensor, Tensor]
BATCH, LENGTH, CAPACITY, SLOTS = 2, 5, 7, 3  # sizes to trace with; each of these axes is dynamic
GRAPH = "language_decoder"


def merge_image(text: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Put `image_embeds` (batch, slots, hidden) into `text` (batch, length, hidden) where `image_index` is not -1."""
    batch, slots, hidden = image_embeds.shape
    rows = torch.arange(batch, device=text.device)[:, None] * slots
    flat = image_embeds.reshape(-1, hidden)
    picked = nn.functional.embedding(image_index.clamp(min=0) + rows, flat)
    return torch.where((image_index >= 0)[..., None], picked, text)


def causal_bias(past_attention_mask: Tensor, attention_mask: Tensor, *, groups: int = 1) -> Tensor:
    """Additive bias (batch, 1, groups * length, capacity + length) of past slots, then new ones.

    `groups` are the query heads of each key head.
    """
    past = (1.0 - past_attention_mask.to(torch.float32))[:, None, None, :] * MASKED
    padded = (1.0 - attention_mask.to(torch.float32))[:, None, None, :] * MASKED
    length = attention_mask.shape[1]
    new = torch.minimum(padded, later_bias(length, attention_mask.device))
    bias = torch.cat([past.expand(-1, -1, length, -1), new], dim=-1)
    return bias.repeat(1, 1, groups, 1) if groups > 1 else bias


def later_bias(length: int, device: torch.device) -> Tensor:
    """Additive bias (length, length) that hides the keys which come after a query."""
    places = torch.arange(length, device=device)
    return (places[None, :] > places[:, None]).to(torch.float32) * MASKED


def causal_attend(query: Tensor, new: KeyValue, past: KeyValue, bias: Tensor) -> Tensor:
    """Attention to past and new slots: (batch, heads, length, head); keys may have fewer heads (grouped queries).

    `query` is scaled already; `bias` is of past slots, then new ones. Scores are joined, never the keys, so that the past
    stays where it lies.
    """
    groups = query.shape[1] // new[0].shape[1]
    if groups > 1:  # queries of one key head are further rows of it, until the values are mixed
        query = query.unflatten(1, (-1, groups)).flatten(2, 3)
    scores = torch.cat([query @ past[0].transpose(-1, -2), query @ new[0].transpose(-1, -2)], dim=-1)
    weights = torch.softmax(scores + bias, dim=-1)
    capacity = past[0].shape[2]
    mixed = weights[..., :capacity] @ past[1] + weights[..., capacity:] @ new[1]
    return mixed.unflatten(2, (groups, -1)).flatten(1, 2) if groups > 1 else mixed


def decoder_plan(
    module: nn.Module, *, layers: int, kv_heads: int, head: int, hidden: int, vocab_size: int, position_rows: int = 0
) -> GraphPlan:
    """The plan of a `language_decoder`, whose forward takes the inputs in this order, and the past as (key, value) pairs.

    `position_rows` is 3 for M-RoPE, whose positions are (3, batch, length).
    """
    cache = [tuple(torch.randn(BATCH, kv_heads, CAPACITY, head) for _ in range(2)) for _ in range(layers)]
    tokens = torch.randint(0, vocab_size, (BATCH, LENGTH))
    index = torch.full((BATCH, LENGTH), -1)
    index[:, 1] = 1
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous()
    axes: dict[int, str] = {0: "batch", 1: "length"}
    wide: dict[int, str] = {1: "batch", 2: "length"}
    seen = torch.ones(BATCH, CAPACITY, dtype=torch.int64)
    return GraphPlan(
        name=GRAPH,
        module=module,
        args=(
            tokens,
            torch.randn(BATCH, SLOTS, hidden),
            index,
            positions.expand(position_rows, -1, -1).contiguous() if position_rows else positions,
            seen,
            torch.ones_like(tokens),
            cache,
        ),
        dynamic_shapes=(
            axes,
            {0: "batch", 1: "slots"},
            axes,
            wide if position_rows else axes,
            {0: "batch", 1: "capacity"},
            axes,
            [({0: "batch", 2: "capacity"},) * 2] * layers,
        ),
        input_names=[
            "input_ids",
            "image_embeds",
            "image_index",
            "position_ids",
            "past_attention_mask",
            "attention_mask",
            *layer_names("past", layers),
        ],
        output_names=["logits", *layer_names("new", layers)],
    )


def layer_names(prefix: str, layers: int) -> list[str]:
    """`past_key.0`, `past_value.0`, `past_key.1`, ..."""
    return [f"{prefix}_{part}.{layer}" for layer in range(layers) for part in ("key", "value")]


def project_heads(attention: Any, states: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (batch, heads, length, head); keys and values may have fewer heads."""
    query, key, value = (
        split_heads(project(states), project.out_features // head)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return query, key, value
