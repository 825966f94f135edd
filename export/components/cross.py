"""What decoders that attend to an encoder's states share: one token's attention, and the plans of their two graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import MASKED
from edgevqa.export.components.causal import KeyValue, layer_names
from edgevqa.export.samples import random_questions
from edgevqa.export.spec import GraphPlan

ENCODER, DECODER = "language_encoder", "language_decoder"
BATCH, WORDS, CAPACITY = 2, 5, 8  # sizes to trace with; each of these axes is dynamic
QUESTION_AXES = {0: "batch", 1: "words"}


@dataclass(frozen=True, kw_only=True)
class CrossShape:
    """Sizes of a decoder. `keys` are the encoder's states: a picture's fixed number, or None for a question's words."""

    layers: int
    heads: int
    head: int
    keys: int | None


def past_bias(past: Tensor, cache_length: Tensor) -> Tensor:
    """Additive bias (capacity,) that hides the slots of `past` (batch, heads, capacity, head) from `cache_length` (1,) on."""
    slots = torch.arange(past.shape[2], device=past.device)
    return (slots >= cache_length).to(torch.float32) * MASKED


def attend_past(query: Tensor, new: KeyValue, past: KeyValue, bias: Tensor) -> Tensor:
    """One token's attention to the past and to itself: (batch, heads, 1, head), `query` scaled already.

    Scores are joined, never the keys, so that the past stays where it lies.
    """
    scores = torch.cat([query @ past[0].transpose(-1, -2) + bias, query @ new[0].transpose(-1, -2)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    capacity = past[0].shape[2]
    return weights[..., :capacity] @ past[1] + weights[..., capacity:] @ new[1]


def image_encoder_plan(module: nn.Module, shape: CrossShape, *, tokens: int, width: int) -> GraphPlan:
    """A `language_encoder` that reads only the picture: `image_embeds` to the mask and the cross keys and values."""
    return GraphPlan(
        name=ENCODER,
        module=module,
        args=(torch.randn(BATCH, tokens, width),),
        dynamic_shapes=({0: "batch"},),
        input_names=["image_embeds"],
        output_names=["encoder_attention_mask", *layer_names("cross", shape.layers)],
    )


def question_encoder_plan(
    module: nn.Module, shape: CrossShape, *, image: tuple[int, int], vocab_size: int
) -> GraphPlan:
    """A `language_encoder` that reads a question about a picture of `image` (tokens, width)."""
    return GraphPlan(
        name=ENCODER,
        module=module,
        args=(torch.randn(BATCH, *image), *random_questions(BATCH, WORDS, vocab_size=vocab_size)),
        dynamic_shapes=({0: "batch"}, QUESTION_AXES, QUESTION_AXES),
        input_names=["image_embeds", "input_ids", "attention_mask"],
        output_names=["encoder_attention_mask", *layer_names("cross", shape.layers)],
    )


def decoder_plan(module: nn.Module, shape: CrossShape) -> GraphPlan:
    """A `language_decoder` whose forward takes `decoder_input_ids`, `cache_length`, the past and the cross pairs.

    Where the keys are a question's words it takes `encoder_attention_mask` as well; a picture's are all seen.
    """
    asked = shape.keys is None
    keys = WORDS if shape.keys is None else shape.keys
    length = torch.tensor([3])
    args = (torch.zeros(BATCH, 1, dtype=torch.int64), length, _pairs(shape, CAPACITY), _pairs(shape, keys))
    axes = ({0: "batch"}, None, _axes(shape, {2: "capacity"}), _axes(shape, {2: "words"} if asked else {}))
    mask = (torch.ones(BATCH, keys, dtype=torch.int64),) if asked else ()
    return GraphPlan(
        name=DECODER,
        module=module,
        args=(*args, *mask),
        dynamic_shapes=(*axes, *([QUESTION_AXES] if asked else [])),
        input_names=[
            "decoder_input_ids",
            "cache_length",
            *layer_names("past", shape.layers),
            *layer_names("cross", shape.layers),
            *(["encoder_attention_mask"] if asked else []),
        ],
        output_names=["logits", *layer_names("new", shape.layers)],
    )


def _pairs(shape: CrossShape, slots: int) -> list[KeyValue]:
    sizes = (BATCH, shape.heads, slots, shape.head)
    return [(torch.randn(sizes), torch.randn(sizes)) for _ in range(shape.layers)]


def _axes(shape: CrossShape, slots: dict[int, str]) -> Sequence[tuple[dict[int, str], dict[int, str]]]:
    return [({0: "batch", **slots}, {0: "batch", **slots})] * shape.layers
