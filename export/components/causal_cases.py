"""What an eager decoder gives for a prompt in two chunks and for single tokens: the cases of a `language_decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from edgevqa.export.components.causal import GRAPH
from edgevqa.export.samples import arrays
from edgevqa.export.spec import Case, Samples

UNUSED = 2  # free cache slots, filled with large values that must not be seen

Forward = Callable[[dict[str, Any]], Any]
"""Runs the eager language model with head on `inputs_embeds`, `attention_mask`, `position_ids`, `past_key_values`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A batch of prompts, padded on the left.

    Ids and mask (batch, length), the pictures' embeddings (batch, slots, hidden) and their places (batch, length; -1 for
    text), positions (batch, length) or (3, batch, length).
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_embeds: Tensor
    image_index: Tensor
    position_ids: Tensor


def make_prompt(ids: Tensor, mask: Tensor, image_embeds: Tensor, image_token: int) -> Prompt:
    """A prompt whose pictures stand where `ids` are `image_token`, with positions that leave the padding out."""
    images = (ids == image_token) & (mask > 0)
    index = torch.where(images, images.long().cumsum(1) - 1, -1)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return Prompt(
        input_ids=ids, attention_mask=mask, image_embeds=image_embeds, image_index=index, position_ids=positions
    )


@torch.no_grad()
def decoder_cases(
    forward: Forward, embed: Callable[[Tensor], Tensor], prompt: Prompt, samples: Samples
) -> Iterator[Case]:
    """The first row's prompt without a past, and all rows' last tokens after the others, which hold the padding.

    What an eager model computes at a padded place means nothing, and is not compared.
    """
    ids, index = prompt.input_ids, prompt.image_index
    places = index.clamp(min=0)[..., None].expand(-1, -1, prompt.image_embeds.shape[-1])
    embeds = torch.where((index >= 0)[..., None], prompt.image_embeds.gather(1, places), embed(ids))
    length, padding = ids.shape[1], int((prompt.attention_mask == 0).sum(1).max())
    full = int(prompt.attention_mask.sum(1).argmax())
    yield _case(forward, _row(prompt, full), embeds[full : full + 1], 0, samples)
    for read in sorted({max(padding, length // 2), length - 1}):
        yield _case(forward, prompt, embeds, read, samples)


def _row(prompt: Prompt, row: int) -> Prompt:
    positions = prompt.position_ids
    one = slice(row, row + 1)
    return Prompt(
        input_ids=prompt.input_ids[one],
        attention_mask=prompt.attention_mask[one],
        image_embeds=prompt.image_embeds[one],
        image_index=prompt.image_index[one],
        position_ids=positions[one] if positions.ndim == 2 else positions[:, one],
    )


def _case(forward: Forward, prompt: Prompt, embeds: Tensor, read: int, samples: Samples) -> Case:
    """The eager model reads everything at once; the graph gets the first `read` tokens through its cache."""
    cache = DynamicCache()
    found = forward(
        {
            "inputs_embeds": embeds,
            "attention_mask": prompt.attention_mask,
            "position_ids": prompt.position_ids,
            "past_key_values": cache,
            "use_cache": True,
        }
    )
    seen = torch.nn.functional.pad(prompt.attention_mask[:, :read], (0, UNUSED))
    inputs: dict[str, Tensor] = {
        "input_ids": prompt.input_ids[:, read:],
        "image_embeds": prompt.image_embeds,
        "image_index": prompt.image_index[:, read:],
        "position_ids": prompt.position_ids[..., read:],
        "past_attention_mask": seen,
        "attention_mask": prompt.attention_mask[:, read:],
    }
    expected: dict[str, Tensor] = {"logits": found.logits[:, -1]}
    layers: Any = cache.layers
    for number, layer in enumerate(layers):
        for part, states in (("key", layer.keys), ("value", layer.values)):
            unused = torch.full_like(states[:, :, :UNUSED], 50.0)
            inputs[f"past_{part}.{number}"] = torch.cat([states[:, :, :read], unused], dim=2)
            expected[f"new_{part}.{number}"] = states[:, :, read:]
    return Case(graph=GRAPH, samples=samples, inputs=arrays(inputs), expected=arrays(expected))
