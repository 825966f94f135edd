"""What the eager ViLT computes, one picture at a time: inputs and outputs that its graph is compared on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevqa.export.answers import open_tokenizer
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels, random_questions
from edgevqa.export.spec import AnswerCase, Case, Loaded, Samples
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.preprocessing import Prepared, collate
from edgevqa.runtime.preprocessing.fixed import preprocess
from edgevqa.runtime.preprocessing.vilt import PatchSettings, cut, target_size
from edgevqa.runtime.text import pad_ids

OUTPUTS = {"classifier": "logits", "matcher": "match_logits"}
RANDOM_GRIDS = ((2, 3), (3, 2), (1, 4))  # rows and columns of patches
CHOICES = ("a picture of a red ball", "is there a dog?", "how many are there")
_Pixels = NDArray[np.float32]


def graph_of(loaded: Loaded) -> str:
    """The name of the family's one graph."""
    return "classifier" if loaded.pipeline == "classification" else "matcher"


def random_inputs(loaded: Loaded, grids: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The graph's inputs for random pictures of these grids and random questions, padded."""
    return _inputs(loaded, _random_pictures(loaded, grids), *_random_words(loaded, len(grids)))


@torch.no_grad()
def cases(loaded: Loaded) -> Iterator[Case]:
    """Random pictures of several grids, and the packaged ones whole and cut, each batch padded."""
    torch.manual_seed(0)
    pictures = _random_pictures(loaded, RANDOM_GRIDS)
    yield _case(loaded, pictures, _random_words(loaded, len(pictures)), "random")
    tokenizer = open_tokenizer(loaded.required_text)
    pad = loaded.required_text.spec.pad_token_id
    for rgb, questions in questions_by_picture():
        shapes = _shapes(rgb)[: len(questions)]
        ids, mask = pad_ids([tokenizer.question(question).ids for question in questions[: len(shapes)]], pad)
        words = torch.from_numpy(ids), torch.from_numpy(mask)
        yield _case(loaded, [_pixels(loaded, each) for each in shapes], words, "real")


@torch.no_grad()
def answer_cases(loaded: Loaded) -> list[AnswerCase]:
    """What the head answers to the packaged questions: labels, or whether and which texts fit the picture."""
    tokenizer = open_tokenizer(loaded.required_text)
    found: list[AnswerCase] = []
    for rgb, questions in questions_by_picture():
        for shape, question in zip(_shapes(rgb), questions, strict=False):
            pixels = _pixels(loaded, shape)
            if loaded.labels:
                best = int(_alone(loaded.model, pixels, tokenizer.question(question).ids).argmax())
                found.append(AnswerCase(image=shape, question=question, expected=loaded.labels[best], tokens=(best,)))
                continue
            fits = float(_alone(loaded.model, pixels, tokenizer.question(question).ids)) >= 0
            found.append(AnswerCase(image=shape, question=question, expected="yes" if fits else "no"))
            scores = [float(_alone(loaded.model, pixels, tokenizer.question(text).ids)) for text in CHOICES]
            best_text = CHOICES[int(np.argmax(scores))]
            found.append(AnswerCase(image=shape, question=question, expected=best_text, choices=CHOICES))
    return found


def _shapes(rgb: Rgb) -> list[Rgb]:
    """A picture whole, wide and high: grids of different size."""
    height, width = rgb.shape[:2]
    return [rgb, rgb[: height // 2], rgb[:, : width * 2 // 3]]


def _case(loaded: Loaded, pictures: Sequence[_Pixels], words: tuple[Tensor, Tensor], samples: Samples) -> Case:
    ids, mask = words
    rows = [
        _alone(loaded.model, pixels, ids[row, : int(mask[row].sum())].tolist()) for row, pixels in enumerate(pictures)
    ]
    graph = graph_of(loaded)
    return Case(
        graph=graph,
        samples=samples,
        inputs=arrays(_inputs(loaded, pictures, ids, mask)),
        expected=arrays({OUTPUTS[graph]: torch.cat(rows)}),
    )


def _alone(model: Any, pixels: _Pixels, ids: Sequence[int]) -> Tensor:
    """The eager model's logits (1, labels): a batch would be filled with patches drawn at random."""
    words = torch.tensor([list(ids)])
    height, width = pixels.shape[2:]
    logits: Tensor = model(
        input_ids=words,
        attention_mask=torch.ones_like(words),
        pixel_values=torch.from_numpy(pixels),
        pixel_mask=torch.ones(1, height, width, dtype=torch.int64),
    ).logits
    return logits


def _inputs(loaded: Loaded, pictures: Sequence[_Pixels], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    settings = _settings(loaded)
    prepared = [
        Prepared(inputs=dict(cut(pixels, patch=settings.patch, table_side=settings.table_side))) for pixels in pictures
    ]
    batch: Mapping[str, NDArray[Any]] = collate(prepared)
    return {"input_ids": ids, "attention_mask": mask, **{name: torch.from_numpy(each) for name, each in batch.items()}}


def _random_pictures(loaded: Loaded, grids: Sequence[tuple[int, int]]) -> list[_Pixels]:
    side = _settings(loaded).patch
    return [random_pixels(1, height=rows * side, width=columns * side).numpy() for rows, columns in grids]


def _random_words(loaded: Loaded, batch: int) -> tuple[Tensor, Tensor]:
    return random_questions(batch, 7, vocab_size=loaded.model.config.vocab_size)


def _pixels(loaded: Loaded, rgb: Rgb) -> _Pixels:
    """The whole picture (1, 3, height, width) as the eager model takes it."""
    height, width = target_size(rgb.shape[0], rgb.shape[1], _settings(loaded))
    size, spec = {"height": height, "width": width}, loaded.required_image
    return preprocess(rgb, msgspec.structs.replace(spec, height=height, width=width, resize=size))


def _settings(loaded: Loaded) -> PatchSettings:
    return msgspec.convert(loaded.required_image.settings, PatchSettings)
