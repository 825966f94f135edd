"""What decoders that attend to an encoder's states share: places and masks of new tokens, and the plans of both graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import MASKED, attend
from edgevqa.export.components.causal import KeyValue, later_bias, layer_names
from edgevqa.export.samples import random_questions
from edgevqa.export.spec import GraphPlan

VISION, ENCODER, DECODER = "vision", "language_encoder", "language_decoder"
BATCH, WORDS, CAPACITY, LENGTH = 2, 5, 8, 3  # sizes to trace with; each of these axes is dynamic
QUESTION_AXES = {0: "batch", 1: "words"}


@dataclass(frozen=True, kw_only=True)
class CrossShape:
    """Sizes of a decoder. `keys` are the encoder's states: a picture's fixed number, or None for a question's words."""

    layers: int
    heads: int
    head: int
    keys: int | None


def places(decoder_input_ids: Tensor, cache_length: Tensor) -> Tensor:
    """Positions (length,) of the new tokens, the first of which is `cache_length` (1,)."""
    if _single(decoder_input_ids):
        return cache_length
    return cache_length + torch.arange(decoder_input_ids.shape[1], device=cache_length.device)


def slots_bias(past: Tensor, cache_length: Tensor, decoder_input_ids: Tensor) -> Tensor:
    """Additive bias (length, capacity + length) of past slots, then new ones.

    It hides the slots of `past` (batch, heads, capacity, head) from `cache_length` (1,) on, and new tokens that come later.
    """
    slots = torch.arange(past.shape[2], device=past.device)
    hidden = (slots >= cache_length).to(torch.float32)[None] * MASKED
    if _single(decoder_input_ids):
        return torch.cat([hidden, torch.zeros(1, 1)], dim=-1)
    length = decoder_input_ids.shape[1]
    return torch.cat([hidden.expand(length, -1), later_bias(length, past.device)], dim=-1)


def attend_joined(query: Tensor, new: KeyValue, past: KeyValue, bias: Tensor) -> Tensor:
    """Attention to past and new slots: (batch, heads, length, head), `query` scaled already.

    Keys are joined, unlike in `causal_attend`: an answer is short, so that copying its past costs less than more operators.
    """
    key, value = (torch.cat(parts, dim=2) for parts in zip(past, new, strict=True))
    return attend(query, key, value, bias)


def _single(decoder_input_ids: Tensor) -> bool:
    return decoder_input_ids.shape[1] == 1  # to the tracer no dynamic axis is


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

    Where the keys are a question's words it takes one token at a time, and `encoder_attention_mask` as well. A picture's keys
    are all seen, and what is asked are the answer's first tokens, which are read at once.
    """
    asked = shape.keys is None
    keys = WORDS if shape.keys is None else shape.keys
    length = torch.tensor([3])
    tokens = torch.zeros(BATCH, 1 if asked else LENGTH, dtype=torch.int64)
    args = (tokens, length, _pairs(shape, CAPACITY), _pairs(shape, keys))
    token_axes = {0: "batch"} if asked else {0: "batch", 1: "length"}
    axes = (token_axes, None, _axes(shape, {2: "capacity"}), _axes(shape, {2: "words"} if asked else {}))
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
