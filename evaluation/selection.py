"""Which samples of a data set are used: the same for the same seed, in the data set's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.runtime.errors import ConfigError


def choose_indices(size: int, count: int | None, seed: int) -> list[int]:
    """`count` of `size` places, sorted; None takes all. Raises `ConfigError` for fewer than one."""
    if count is not None and count < 1:
        raise ConfigError(f"The number of samples is {count}; expected at least 1.")
    if count is None or count >= size:
        return list(range(size))
    chosen = np.random.default_rng(seed).choice(size, size=count, replace=False)
    return sorted(int(index) for index in chosen)


def choose_samples(dataset: Dataset, count: int | None, seed: int) -> list[Sample]:
    """The chosen samples; their pictures are not opened."""
    return [dataset[index] for index in choose_indices(len(dataset), count, seed)]


def latency_pairs(samples: Sequence[Sample], runs: int, seed: int) -> list[tuple[Sample, Sample]]:
    """`runs` samples drawn with the seed, each with another one about the same picture (or itself, where it is alone).

    All samples come once before one comes twice.
    """
    by_picture: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_picture.setdefault(sample.image_id, []).append(index)
    rng = np.random.default_rng([seed, 1])
    order: list[int] = []
    while len(order) < runs:
        order += [int(index) for index in rng.permutation(len(samples))]
    return [(samples[index], samples[_other(by_picture[samples[index].image_id], index)]) for index in order[:runs]]


def _other(group: Sequence[int], index: int) -> int:
    """The one after `index` in its group, in a circle."""
    return group[(group.index(index) + 1) % len(group)]
