"""The plans of a T5's `language_encoder` and `language_decoder`, and what the eager T5 gives for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from edgevqa.export.components.causal import layer_names
from edgevqa.export.components.t5 import LanguageDecoder, LanguageEncoder
from edgevqa.export.samples import arrays, random_questions
from edgevqa.export.spec import Case, GraphPlan, Samples

ENCODER, DECODER = "language_encoder", "language_decoder"
BATCH, WORDS, CAPACITY = 2, 5, 7  # sizes to trace with; each of these axes is dynamic
STEPS = 6  # decoder positions in the cached-decoding check; the last one is compared
UNUSED = 3  # free cache slots, filled with large values that must not be seen


def encoder_plan(model: T5ForConditionalGeneration, slots: int) -> GraphPlan:
    """The graph `language_encoder`, which reads `slots` embeddings of a picture and then the question."""
    words = {0: "batch", 1: "words"}
    return GraphPlan(
        name=ENCODER,
        module=LanguageEncoder(model),
        args=(
            torch.randn(BATCH, slots, model.config.d_model),
            *random_questions(BATCH, WORDS, vocab_size=model.config.vocab_size),
        ),
        dynamic_shapes=({0: "batch"}, words, words),
        input_names=["image_embeds", "input_ids", "attention_mask"],
        output_names=["encoder_hidden_states", "encoder_attention_mask", *_names(model, "cross")],
        relabel={f"words + {slots}": "keys", f"{slots} + words": "keys"},
    )


def decoder_plan(model: T5ForConditionalGeneration) -> GraphPlan:
    """The graph `language_decoder`."""
    config, keys = model.config, WORDS + 1
    layers = _layer_count(model)

    def pairs(slots: int) -> list[tuple[Tensor, Tensor]]:
        shape = (BATCH, config.num_heads, slots, config.d_kv)
        return [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]

    def axes(slots: str) -> list[tuple[dict[int, str], dict[int, str]]]:
        return [({0: "batch", 2: slots}, {0: "batch", 2: slots})] * layers

    ids, length = torch.zeros(BATCH, 1, dtype=torch.int64), torch.tensor([3])
    return GraphPlan(
        name=DECODER,
        module=LanguageDecoder(model),
        args=(ids, length, pairs(CAPACITY), pairs(keys), torch.ones(BATCH, keys, dtype=torch.int64)),
        dynamic_shapes=({0: "batch"}, None, axes("capacity"), axes("keys"), {0: "batch", 1: "keys"}),
        input_names=[
            "decoder_input_ids",
            "cache_length",
            *_names(model, "past"),
            *_names(model, "cross"),
            "encoder_attention_mask",
        ],
        output_names=["logits", *_names(model, "new")],
    )


@torch.no_grad()
def t5_cases(
    model: T5ForConditionalGeneration, image_embeds: Tensor, ids: Tensor, mask: Tensor, samples: Samples
) -> Iterator[Case]:
    """Both graphs for pictures (batch, slots, text) and questions (batch, words), by transformers' own forward."""
    embeds = torch.cat([image_embeds, model.get_input_embeddings()(ids)], dim=1)
    whole = torch.cat([torch.ones(image_embeds.shape[:2], dtype=mask.dtype), mask], dim=1)
    decoded_ids = torch.randint(2, model.config.vocab_size, (len(ids), STEPS))
    decoded_ids[:, 0] = model.config.decoder_start_token_id
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
    found: Any = model(
        inputs_embeds=embeds,
        attention_mask=whole,
        decoder_input_ids=decoded_ids,
        past_key_values=cache,
        use_cache=True,
    )
    cross = _layers(cache.cross_attention_cache, "cross")
    yield Case(
        graph=ENCODER,
        samples=samples,
        inputs=arrays({"image_embeds": image_embeds, "input_ids": ids, "attention_mask": mask}),
        expected=arrays(
            {
                "encoder_hidden_states": found.encoder_last_hidden_state,
                "encoder_attention_mask": whole,
                **cross,
            }
        ),
    )
    inputs = {"decoder_input_ids": decoded_ids[:, -1:], "cache_length": torch.tensor([STEPS - 1])}
    expected: dict[str, Tensor] = {"logits": found.logits[:, -1]}
    for name, states in _layers(cache.self_attention_cache, "past").items():
        unused = torch.full_like(states[:, :, :UNUSED], 50.0)
        inputs[name] = torch.cat([states[:, :, :-1], unused], dim=2)
        expected[name.replace("past", "new", 1)] = states[:, :, -1:]
    inputs |= {**cross, "encoder_attention_mask": whole}
    yield Case(graph=DECODER, samples=samples, inputs=arrays(inputs), expected=arrays(expected))


def _layers(cache: Any, prefix: str) -> dict[str, Tensor]:
    """A cache's keys and values, (batch, heads, length, head), by the names of the graphs."""
    states = (each for layer in cache.layers for each in (layer.keys, layer.values))
    return dict(zip(layer_names(prefix, len(cache.layers)), states, strict=True))


def _names(model: T5ForConditionalGeneration, prefix: str) -> list[str]:
    return layer_names(prefix, _layer_count(model))


def _layer_count(model: T5ForConditionalGeneration) -> int:
    return int(model.config.num_decoder_layers or model.config.num_layers)
