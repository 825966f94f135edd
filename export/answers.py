"""What an eager model of transformers generates for the packaged questions: the end of every chain of comparisons."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevqa.export.samples import questions_by_picture
from edgevqa.export.spec import AnswerCase, Loaded, Tokenized
from edgevqa.export.streaming import is_big
from edgevqa.runtime.preprocessing import Prepared, prepare
from edgevqa.runtime.text import QuestionTokenizer

TOKENS = 20
Generate = Callable[[Loaded, Prepared, Sequence[int]], Tensor]
"""Generated ids (1, length), without the prompt, of the eager model for a prepared picture and a question's ids."""


def open_tokenizer(text: Tokenized) -> QuestionTokenizer:
    """The runtime's tokenizer before there is a bundle."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tokenizer.json")
        path.write_bytes(text.data)
        return QuestionTokenizer(path, text.spec)


class Asked(NamedTuple):
    """A packaged picture (height, width, 3), how it was prepared, a question about it, and the question's ids."""

    rgb: NDArray[np.uint8]
    prepared: Prepared
    question: str
    ids: tuple[int, ...]


@torch.no_grad()
def generated_answers(loaded: Loaded, generate: Generate | None = None, *, per_picture: int = 2) -> list[AnswerCase]:
    """The greedy answers of `TOKENS` tokens to the first questions about every packaged picture, each asked alone.

    A very big model is asked one question (`export/streaming.py`); the manifest says so.
    """
    chosen = generate or decoder_only
    return asked_answers(loaded, lambda asked: chosen(loaded, asked.prepared, asked.ids), per_picture=per_picture)


@torch.no_grad()
def asked_answers(
    loaded: Loaded, generate: Callable[[Asked], Tensor], *, per_picture: int = 2, also: Sequence[str] = ()
) -> list[AnswerCase]:
    """As `generated_answers`, for eager models that need more than the prepared picture and the ids.

    `also` are further questions about every picture.
    """
    tokenizer = open_tokenizer(loaded.required_text)
    found: list[AnswerCase] = []
    pictures = questions_by_picture()
    if is_big(loaded.model):
        pictures, per_picture = pictures[:1], 1
    for rgb, questions in pictures:
        prepared = prepare(rgb, loaded.required_image)
        for question in (*questions[:per_picture], *also):
            asked = Asked(rgb, prepared, question, tokenizer.question(question).ids)
            found.append(_case(loaded, tokenizer, asked, generate(asked)[0].tolist()))
    return found


def _case(loaded: Loaded, tokenizer: QuestionTokenizer, asked: Asked, tokens: list[int]) -> AnswerCase:
    spec = loaded.generation
    ends = set() if spec is None else {spec.eos_token_id, *spec.more_eos_token_ids}
    stop = next((number for number, token in enumerate(tokens) if token in ends), len(tokens))
    kept = tuple(tokens[: stop + 1])
    return AnswerCase(
        image=asked.rgb,
        question=asked.question,
        expected=tokenizer.decode(kept),
        max_new_tokens=TOKENS,
        tokens=kept,
    )


def expand(ids: Sequence[int], prepared: Prepared, *, image_token: int, slots: int) -> Tensor:
    """A prompt's ids (1, length) with the picture's places filled in, as the model's own processor writes them."""
    places = prepared.expansion or (image_token,) * slots
    return torch.tensor([[each for token in ids for each in (places if token == image_token else (token,))]])


def greedy(model: Any, **inputs: Any) -> Tensor:
    """What `model.generate` gives greedily in `TOKENS` tokens."""
    found: Tensor = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=TOKENS)
    return found


def decoder_only(loaded: Loaded, prepared: Prepared, ids: Sequence[int]) -> Tensor:
    """The `Generate` of models that take the prompt's ids and what their processor gives by the same names."""
    spec, image = loaded.required_text.spec, loaded.required_image
    token = 0 if spec.image_token_id is None else spec.image_token_id
    prompt = expand(ids, prepared, image_token=token, slots=image.tokens or 0)
    inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in prepared.inputs.items()}
    found = greedy(loaded.model, input_ids=prompt, attention_mask=torch.ones_like(prompt), **inputs)
    return found[:, prompt.shape[1] :]
