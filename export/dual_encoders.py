"""What dual encoders of transformers have in common: how texts are read, and what the eager model gives for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevqa.export.answers import open_tokenizer
from edgevqa.export.samples import arrays, questions_by_picture
from edgevqa.export.sources import read_json
from edgevqa.export.spec import AnswerCase, Case, Loaded, Samples
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.similarity import log_probabilities
from edgevqa.runtime.text import pad_ids

IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"
CHOICES = 5
_NAMES_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
_NEAR = 1e-3  # so close to a threshold, rounding decides what is answered


def normalised(embeds: Tensor) -> Tensor:
    """Vectors of length 1, along the last axis."""
    length: Tensor = embeds.norm(p=2, dim=-1, keepdim=True)
    return embeds / length


def closing_token(tokenizer: bytes) -> int | None:
    """The special token that the tokenizer puts at a text's end, or None."""
    found = Tokenizer.from_str(tokenizer.decode("utf-8")).encode("a")
    return found.ids[-1] if found.ids and found.special_tokens_mask[-1] else None


def padding_token(folder: Path, tokenizer: bytes, *, default: int | None) -> int:
    """The token that the folder's tokenizer pads with, from the files that name it; `default` where none does."""
    loaded = Tokenizer.from_str(tokenizer.decode("utf-8"))
    for name in _NAMES_TOKENS:
        path = folder / name
        named = read_json(path, what="it names the special tokens").get("pad_token") if path.is_file() else None
        found = loaded.token_to_id(str(named.get("content") if isinstance(named, dict) else named or ""))
        if found is not None:
            return found
    return 0 if default is None else default


def matching_spec(model: Any, activation: Any) -> MatchingSpec:
    """Scale and bias that the model learned; the logarithm of the scale is what is stored."""
    bias = getattr(model, "logit_bias", None)
    return MatchingSpec(
        scale=float(model.logit_scale.detach().exp()),
        bias=0.0 if bias is None else float(bias.detach()),
        activation=activation,
    )


def padded(loaded: Loaded, rows: Sequence[Sequence[int]], words: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts (batch, words), padded to `words`, or to the longest."""
    pad = loaded.required_text.spec.pad_token_id
    ids, mask = pad_ids(rows, pad)
    more = ((0, 0), (0, 0 if words is None else words - ids.shape[1]))
    return torch.from_numpy(np.pad(ids, more, constant_values=pad)), torch.from_numpy(np.pad(mask, more))


def real_batches(loaded: Loaded, words: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every packaged picture's pixels, with ids and mask of the questions about it."""
    tokenizer = open_tokenizer(loaded.required_text)
    for rgb, questions in questions_by_picture():
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
        yield pixels, *padded(loaded, [tokenizer.question(question).ids for question in questions], words)


def encoder_cases(inputs: dict[str, Tensor], found: Any, pixels: Tensor, samples: Samples) -> Iterator[Case]:
    """Cases of both graphs; `inputs` are the text's, `found` is what the eager model gave for it and `pixels`."""
    given: tuple[tuple[str, dict[str, Tensor], str], ...] = (
        (IMAGE_ENCODER, {"pixel_values": pixels}, "image_embeds"),
        (TEXT_ENCODER, inputs, "text_embeds"),
    )
    for graph, feeds, output in given:
        expected = {output: getattr(found, output)}
        yield Case(graph=graph, samples=samples, inputs=arrays(feeds), expected=arrays(expected))


@torch.no_grad()
def matching_answers(loaded: Loaded, words: int | None = None, *, masked: bool) -> list[AnswerCase]:
    """The likeliest of some texts for every packaged picture, and what is answered to each of the first two alone.

    Texts are padded to `words`; the eager model sees the mask where it is `masked`.
    """
    matching = loaded.matching
    if matching is None:
        raise RuntimeError("the family loads no scale of its similarities")
    texts = list(dict.fromkeys(text for _, questions in questions_by_picture() for text in questions))[:CHOICES]
    tokenizer = open_tokenizer(loaded.required_text)
    ids, mask = padded(loaded, [tokenizer.question(text).ids for text in texts], words)
    found: list[AnswerCase] = []
    for rgb, _ in questions_by_picture():
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
        seen = loaded.model(input_ids=ids, pixel_values=pixels, attention_mask=mask if masked else None)
        values = seen.logits_per_image[0].double().numpy()
        found.append(AnswerCase(image=rgb, question="", expected=texts[int(values.argmax())], choices=tuple(texts)))
        for text, logit in list(zip(texts, values.tolist(), strict=True))[:2]:
            if (expected := _alone(logit, matching)) is not None:
                found.append(AnswerCase(image=rgb, question=text, expected=expected))
    return found


def _alone(logit: float, matching: MatchingSpec) -> str | None:
    """What is answered to a text without choices; None where rounding would decide."""
    if matching.activation == "sigmoid":
        yes = float(np.exp(log_probabilities(np.array([logit]), "sigmoid"))[0])
        return None if abs(yes - 0.5) < _NEAR else "yes" if yes > 0.5 else "no"
    cosine = (logit - matching.bias) / matching.scale
    shown = round(cosine, 2) + 0.0
    return None if abs(abs(cosine - shown) - 0.005) < _NEAR / 10 else f"{shown:.2f}"
