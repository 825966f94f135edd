"""What every data set gives: samples that can be counted, indexed and iterated again and again, and hashes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about one picture. The picture is opened when `image` is asked for, not before.

    `answers` is empty where none is known; `image_id` is the same for two questions exactly if their picture is.
    """

    question: str
    answers: list[str]
    question_type: str
    image_id: str
    question_id: str
    open_image: Callable[[], Image.Image] = field(repr=False)

    @property
    def image(self) -> Image.Image:
        """The picture, RGB; opened or rendered anew at every access. Raises `ImageError` where it cannot be read."""
        return self.open_image()


class Dataset(Protocol):
    """A sequence of samples in a fixed order; iterating twice gives the same samples twice."""

    @property
    def spec(self) -> str:
        """The spec string that opens it again."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


def sample_key(sample: Sample) -> bytes:
    """Hash of the question and the picture, 32 bytes: equal for the same question about the same pixels, in any data set.

    Answers and ids stay out. Opens the picture; raises `ImageError` where that fails.
    """
    return _joined_hash([sample.question.encode(), _picture_hash(sample)])


def dataset_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) over each sample's question, answers and picture, in their order.

    Of pictures the decoded RGB pixels and the size count, not the file: what a model is shown, and what generated
    pictures have as well. Each picture is opened once, one at a time. Raises `ImageError` where one cannot be read.
    """
    pictures: dict[str, bytes] = {}
    total = hashlib.sha256()
    for sample in samples:
        if sample.image_id not in pictures:
            pictures[sample.image_id] = _picture_hash(sample)
        answers = _joined_hash([answer.encode() for answer in sample.answers])
        total.update(_joined_hash([sample.question.encode(), answers, pictures[sample.image_id]]))
    return total.hexdigest()


def _picture_hash(sample: Sample) -> bytes:
    picture = sample.image.convert("RGB")
    return _joined_hash([repr(picture.size).encode(), picture.tobytes()])


def _joined_hash(parts: Iterable[bytes]) -> bytes:
    """Hash of parts each with its length before it, so that moving a letter from one to the next changes it."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()
