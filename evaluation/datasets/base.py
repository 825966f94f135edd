"""What every data set gives: samples that can be counted, indexed and iterated again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about one picture. The picture is opened when `image` is asked for, not before."""

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
