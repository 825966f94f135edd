"""Inputs to trace and check graphs with: random ones from optimum's generators, real ones from packaged pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PICTURES = Path(__file__).parent / "pictures"


def random_pixels(images: int, *, height: int, width: int, channels: int = 3) -> Tensor:
    """`pixel_values` (images, channels, height, width) float32, about as large as normalised pixels."""
    from optimum.utils import DummyVisionInputGenerator, NormalizedVisionConfig

    named: Any = _Named(image_size=(height, width), num_channels=channels)
    config = NormalizedVisionConfig(named)
    generator = DummyVisionInputGenerator(
        "visual-question-answering", config, batch_size=images, num_channels=channels, width=width, height=height
    )
    pixels: Any = generator.generate("pixel_values", framework="pt")
    scaled: Tensor = pixels * 2 - 1
    return scaled


def random_questions(batch: int, words: int, *, vocab_size: int) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` (batch, words) int64; every row but the first ends in padding."""
    from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

    named: Any = _Named(vocab_size=vocab_size)
    config = NormalizedTextConfig(named)
    generator = DummyTextInputGenerator("text2text-generation", config, batch_size=batch, sequence_length=words)
    generated: Any = generator.generate("input_ids", framework="pt")
    ids: Tensor = generated
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, words - row) :] = 0
    return ids.clamp(min=3) * mask, mask


class SampleQuestion(msgspec.Struct, frozen=True):
    """A line of the packaged `questions.jsonl`."""

    image: str
    question: str
    answer: str


def sample_questions() -> list[SampleQuestion]:
    """The packaged questions, each with the name of its picture and the true answer."""
    lines = (PICTURES / "questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=SampleQuestion) for line in lines]


def sample_picture(name: str) -> NDArray[np.uint8]:
    """A packaged picture, (height, width, 3)."""
    with Image.open(PICTURES / name) as picture:
        return np.asarray(picture.convert("RGB"))


def questions_by_picture() -> list[tuple[NDArray[np.uint8], list[str]]]:
    """Every packaged picture with the questions about it."""
    names: dict[str, list[str]] = {}
    for sample in sample_questions():
        names.setdefault(sample.image, []).append(sample.question)
    return [(sample_picture(name), questions) for name, questions in names.items()]


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as arrays of their own."""
    return {name: tensor.detach().contiguous().numpy().copy() for name, tensor in tensors.items()}


class _Named:
    """A configuration with just the attributes that optimum's normalised configs look up."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
