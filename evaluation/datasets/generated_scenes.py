"""Generated scenes as a data set: `scenes:SEED:N` has N questions, four a picture, each reproducible by itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.scenes import Scene, SceneQuestion, ask, random_scene, render
from edgevqa.runtime.errors import InputError

QUESTIONS_PER_PICTURE = 4


class GeneratedScenes:
    """Questions about generated pictures; question i depends on the seed and on i alone."""

    def __init__(self, seed: int, count: int) -> None:
        self.spec = f"scenes:{seed}:{count}"
        self.seed = seed
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not -self._count <= index < self._count:
            raise IndexError(f"{self.spec} has no question {index}.")
        index %= self._count
        picture, place = divmod(index, QUESTIONS_PER_PICTURE)
        question = scene_of(self.seed, picture)[1][place]
        return Sample(
            question=question.text,
            answers=[question.answer],
            question_type=question.type,
            image_id=str(picture),
            question_id=str(index),
            open_image=partial(_picture, self.seed, picture),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(self._count))


def open_scenes(rest: str) -> GeneratedScenes:
    """Open `SEED:N`. Raises `InputError` where these are not two whole numbers that make sense."""
    seed, _, count = rest.partition(":")
    if not (seed.isascii() and seed.isdigit() and count.isascii() and count.isdigit()) or int(count) < 1:
        raise InputError(f"'scenes:{rest}' should be scenes:SEED:N with a seed of 0 or more and at least one question.")
    return GeneratedScenes(int(seed), int(count))


@lru_cache(maxsize=16)
def scene_of(seed: int, picture: int) -> tuple[Scene, tuple[SceneQuestion, ...]]:
    """Return what picture number `picture` of a seed shows, and its questions."""
    rng = np.random.default_rng([seed, picture])
    scene = random_scene(rng)
    return scene, tuple(ask(scene, rng, QUESTIONS_PER_PICTURE))


def _picture(seed: int, picture: int) -> Image.Image:
    return render(scene_of(seed, picture)[0])
