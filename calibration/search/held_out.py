"""Samples that calibration has not seen, in a seeded order, with their pictures kept while memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from edgevqa.calibration.observation.samples import dataset_name
from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import CalibrationSpec

FEWEST = 16
FEW = 200
PICTURE_BYTES = 256 << 20


def held_out(spec: str, calibration: CalibrationSpec | None, *, seed: int, limit: int | None = None) -> list[Sample]:
    """Up to `limit` samples of the data set `spec` that are no part of the calibration set, in a seeded random order.

    The first n are the same for every `limit`. Raises `InputError` where fewer than `FEWEST` are left.
    """
    dataset = open_dataset(spec)
    seen = (
        set(calibration.question_ids) if calibration and _same_source(calibration.dataset, dataset.spec) else set[str]()
    )
    found = list(_unseen(dataset, seen, seed, limit))
    if len(found) < FEWEST:
        raise InputError(
            f"{spec} has {len(found)} questions that were not used for calibration (of {len(dataset)}); expected at "
            f"least {FEWEST}. Give --data with other or more questions."
        )
    return keep_pictures(found)


def keep_pictures(samples: list[Sample], max_bytes: int = PICTURE_BYTES) -> list[Sample]:
    """The samples with pictures that are opened once, as far as `max_bytes` go (pixels of 3 bytes)."""
    pictures = _Pictures(max_bytes)
    return [
        dataclasses.replace(sample, open_image=partial(pictures.get, sample.image_id, sample.open_image))
        for sample in samples
    ]


def _unseen(dataset: Dataset, seen: set[str], seed: int, limit: int | None) -> Iterator[Sample]:
    count = 0
    for index in np.random.default_rng([seed, len(dataset)]).permutation(len(dataset)).tolist():
        if limit is not None and count >= limit:
            return
        sample = dataset[index]
        if sample.question_id not in seen:
            count += 1
            yield sample


def _same_source(calibrated: str, given: str) -> bool:
    """Whether question ids of two specs name the same questions.

    Files and folders are told apart by their name alone: a bundle does not know the paths of other machines.
    """
    if calibrated.startswith("scenes:") and given.startswith("scenes:"):
        return calibrated.split(":")[1] == given.split(":")[1]
    return calibrated == dataset_name(given)


class _Pictures:
    """Pictures by id, the first to come as long as there is room."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: dict[str, Image.Image] = {}

    def get(self, name: str, open_image: Callable[[], Image.Image]) -> Image.Image:
        if name in self._kept:
            return self._kept[name]
        picture = open_image()
        size = 3 * picture.width * picture.height
        if size <= self._left:
            self._left -= size
            self._kept[name] = picture
        return picture
