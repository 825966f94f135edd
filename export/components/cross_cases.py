"""What an eager decoder with cross-attention gives and generates: the cases of `language_encoder` and `language_decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from edgevqa.export.answers import TOKENS, open_tokenizer
from edgevqa.export.components.cross import DECODER, ENCODER, VISION
from edgevqa.export.samples import arrays, questions_by_picture
from edgevqa.export.spec import AnswerCase, Case, Loaded, Samples
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.text import pad_ids

STEPS = 6  # decoder positions in the cached-decoding check; the last one is compared
CHUNK = 4  # tokens of a prompt that are read at once
EXTRA_SLOTS = 3  # unused cache slots, filled with large values that must not be seen
PROMPTS = ("", "a picture of")

Generate = Callable[[Any, Tensor, Sequence[int]], Tensor]
"""Takes the eager model, `pixel_values` and a prompt's ids; gives the generated ids (1, length) without the prompt."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An eager decoder with head, and the states (batch, keys, width) that it attends to; without a mask, to all."""

    decoder: Any
    states: Tensor
    mask: Tensor | None = None


@torch.no_grad()
def language_cases(encoded: Encoded, inputs: Mapping[str, Tensor], samples: Samples) -> Iterator[Case]:
    """A case of the graph that gives cross keys and values, and takes `inputs`, and one or two of `language_decoder`.

    That graph is `language_encoder` where a question is read, with its mask, and else `vision`.

    The eager decoder reads STEPS tokens at once, each row alone and without its padding, for not every decoder of
    transformers honours a mask of the encoder's states; the graph gets all but the last token through its cache, and a
    graph that reads prompts all but the last CHUNK.
    """
    ids = torch.randint(0, encoded.decoder.config.vocab_size, (len(encoded.states), STEPS))
    masked = encoded.mask is not None
    mask = torch.ones(encoded.states.shape[:2], dtype=torch.int64) if encoded.mask is None else encoded.mask
    cross = _read(encoded.decoder, ids, encoded.states)[1]
    rows = [
        _read(encoded.decoder, ids[row : row + 1], encoded.states[row : row + 1, : int(mask[row].sum())])
        for row in range(len(ids))
    ]
    logits = torch.cat([decoded.logits[:, -1] for decoded, _ in rows])
    yield (
        _case(ENCODER, samples, inputs, {"encoder_attention_mask": mask, **cross})
        if masked
        else _case(VISION, samples, inputs, cross)
    )
    for length in (1,) if masked else (1, CHUNK):
        fed, new = _split([decoded for decoded, _ in rows], length)
        step = {"decoder_input_ids": ids[:, -length:], "cache_length": torch.tensor([STEPS - length]), **fed, **cross}
        step |= {"encoder_attention_mask": mask} if masked else {}
        yield _case(DECODER, samples, step, {"logits": logits, **new})


def _split(rows: Sequence[Any], length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The keys and values that the rows left: those before the last `length` tokens as a cache, and theirs."""
    fed, new = {}, {}
    for number in range(len(rows[0].past_key_values.self_attention_cache.layers)):
        layers = [decoded.past_key_values.self_attention_cache.layers[number] for decoded in rows]
        keys, values = (torch.cat(parts) for parts in zip(*((each.keys, each.values) for each in layers), strict=True))
        for part, states in (("key", keys), ("value", values)):
            unused = torch.full_like(states[:, :, :EXTRA_SLOTS], 50.0)
            fed[f"past_{part}.{number}"] = torch.cat([states[:, :, :-length], unused], dim=2)
            new[f"new_{part}.{number}"] = states[:, :, -length:]
    return fed, new


def _read(decoder: Any, ids: Tensor, states: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """What the eager decoder gives for `ids`, with its cache, and the cross keys and values in it."""
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoded = decoder(input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
    cross: dict[str, Tensor] = {}
    for number, layer in enumerate(cache.cross_attention_cache.layers):
        cross |= {f"cross_key.{number}": layer.keys, f"cross_value.{number}": layer.values}
    return decoded, cross


def real_questions(loaded: Loaded, count: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (count, words) of the first packaged questions, the shorter ones padded at the end."""
    tokenizer = open_tokenizer(loaded.required_text)
    ids = [tokenizer.question(question).ids for _, questions in questions_by_picture() for question in questions]
    rows, mask = pad_ids(ids[:count], loaded.required_text.spec.pad_token_id)
    return torch.from_numpy(rows), torch.from_numpy(mask)


@torch.no_grad()
def captions(loaded: Loaded, generate: Generate) -> list[AnswerCase]:
    """Greedy captions of `TOKENS` tokens of every packaged picture: without a prompt, and with one and another."""
    tokenizer = open_tokenizer(loaded.required_text)
    found: list[AnswerCase] = []
    for rgb, questions in questions_by_picture():
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
        for prompt in (*PROMPTS, questions[0]):
            ids = tokenizer.question(prompt).ids
            tokens = tuple(generate(loaded.model, pixels, ids)[0].tolist())
            text = tokenizer.decode((*ids, *tokens))
            found.append(AnswerCase(image=rgb, question=prompt, expected=text, max_new_tokens=TOKENS, tokens=tokens))
    return found


def _case(graph: str, samples: Samples, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Case:
    return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))
