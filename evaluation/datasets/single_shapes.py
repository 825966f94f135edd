"""The easy-vqa data set: one shape a picture, 38,575 training and 9,673 test questions in their official order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.image_files import open_rgb
from edgevqa.runtime.errors import InputError, require

SPLITS = ("train", "test")


class SingleShapes:
    """One split of easy-vqa; pictures are read from the installed package when they are asked for."""

    def __init__(self, split: str, folder: Path) -> None:
        self.spec = f"easy-vqa:{split}"
        self._folder = folder / split
        raw = json.loads((self._folder / "questions.json").read_text(encoding="utf-8"))
        self._rows = [(str(question), str(answer), int(image)) for question, answer, image in raw]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        question, answer, image = self._rows[index]
        return Sample(
            question=question,
            answers=[answer],
            question_type=_type_of(question, answer),
            image_id=str(image),
            question_id=str(index),
            open_image=partial(open_rgb, self._folder / "images" / f"{image}.png"),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def open_single_shapes(split: str) -> SingleShapes:
    """Open `train` or `test`. Raises `InputError` for another split, `MissingExtraError` without the package."""
    if split not in SPLITS:
        raise InputError(f"easy-vqa has no split '{split}'; use easy-vqa:train or easy-vqa:test.")
    package = require("easy_vqa", extra="data", purpose="The easy-vqa data set")
    return SingleShapes(split, Path(str(package.__file__)).parent / "data")


def _type_of(question: str, answer: str) -> str:
    """`yes/no`, `color` or `shape`: what kind of answer is asked for."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "color" if "color" in question else "shape"
