"""How much faster a variant is than another on one backend: both loaded, asked in turn, compared round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.selection import latency_pairs
from edgevqa.runtime.images import Rgb, load_image
from edgevqa.runtime.pipeline import Pipeline

WARM_UP_ROUNDS = 3
NORMAL_95 = 1.96
VISION = ("vision_trunk", "vision_fusion")


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast: the median over rounds with its 95% interval, and the 10th and 90th percentile."""

    median: float
    median_ci95: tuple[float, float]
    p10: float
    p90: float


class Speedup(msgspec.Struct, frozen=True, kw_only=True):
    """A variant beside the baseline, in rounds of one first and one next answer each, all at batch 1.

    A first answer knows nothing of picture and question; a next one is about the same picture. `vision` is what the
    graphs of the vision tower take of a first answer, and `tokens` the tokens of all answers. Milliseconds are medians.
    """

    backend: str
    variant: str
    baseline: str
    rounds: int
    answers_per_s: float
    baseline_answers_per_s: float
    latency_ms: dict[str, float]
    baseline_latency_ms: dict[str, float]
    ratio: dict[str, Ratio]
    tokens: int
    baseline_tokens: int


def compare_speed(
    path: Path,
    variant: str,
    samples: Sequence[Sample],
    *,
    backend: str,
    baseline: str = "fp32",
    rounds: int = 30,
    max_new_tokens: int | None = None,
) -> Speedup:
    """Time `rounds` of both variants in turn, which of them begins alternating. Raises what loading raises."""
    pairs = latency_pairs(samples, WARM_UP_ROUNDS + rounds, seed=0)
    options: dict[str, Any] = {"backend": backend, "max_batch": 1, "question_cache_mb": 0}
    with (
        Pipeline.load(path, precision=baseline, **options) as float_one,
        Pipeline.load(path, precision=variant, **options) as other,
    ):
        laps: dict[str, list[_Lap]] = {baseline: [], variant: []}
        both = [(baseline, float_one), (variant, other)]
        for number, (first, following) in enumerate(pairs):
            picture = load_image(first.image)
            for name, pipeline in both if number % 2 else reversed(both):
                laps[name].append(_lap(pipeline, picture, (first.question, following.question), max_new_tokens))
    measured = {name: found[WARM_UP_ROUNDS:] for name, found in laps.items()}
    return _report(measured[variant], measured[baseline], backend=backend, variant=variant, baseline=baseline)


class _Lap(msgspec.Struct, frozen=True):
    """Milliseconds of one round: `first`, `next`, `vision`, and each graph's share of the first answer."""

    stages_ms: dict[str, float]
    tokens: int


def _lap(pipeline: Pipeline, picture: Rgb, questions: tuple[str, str], max_new_tokens: int | None) -> _Lap:
    pipeline.clear_caches()
    start = time.perf_counter()
    first = pipeline.answer(picture, questions[0], max_new_tokens=max_new_tokens)
    middle = time.perf_counter()
    following = pipeline.answer(picture, questions[1], max_new_tokens=max_new_tokens)
    end = time.perf_counter()
    stages = {name: first.timing_ms.get(name, 0.0) for name in pipeline.manifest.variants[pipeline.variant].graphs}
    stages |= {"vision": sum(stages.get(name, 0.0) for name in VISION)}
    stages |= {"first": (middle - start) * 1e3, "next": (end - middle) * 1e3}
    return _Lap(stages, len(first.tokens) + len(following.tokens))


def _report(laps: Sequence[_Lap], base: Sequence[_Lap], *, backend: str, variant: str, baseline: str) -> Speedup:
    mine, theirs = _medians(laps), _medians(base)
    pairs = list(zip(laps, base, strict=True))
    return Speedup(
        backend=backend,
        variant=variant,
        baseline=baseline,
        rounds=len(laps),
        answers_per_s=round(1e3 / mine["first"], 2),
        baseline_answers_per_s=round(1e3 / theirs["first"], 2),
        latency_ms=mine,
        baseline_latency_ms=theirs,
        ratio={name: ratio_of([b.stages_ms[name] / a.stages_ms[name] for a, b in pairs]) for name in mine},
        tokens=sum(lap.tokens for lap in laps),
        baseline_tokens=sum(lap.tokens for lap in base),
    )


def _medians(laps: Sequence[_Lap]) -> dict[str, float]:
    return {name: round(float(np.median([lap.stages_ms[name] for lap in laps])), 3) for name in laps[0].stages_ms}


def ratio_of(ratios: list[float]) -> Ratio:
    """The interval is that of order statistics: distribution-free, and the whole range below six rounds."""
    low, median, high = (round(float(value), 3) for value in np.percentile(ratios, (10, 50, 90)))
    place = max(0, math.floor((len(ratios) - NORMAL_95 * math.sqrt(len(ratios))) / 2))
    ordered = sorted(ratios)
    interval = (round(ordered[place], 3), round(ordered[-1 - place], 3))
    return Ratio(median=median, median_ci95=interval, p10=low, p90=high)
