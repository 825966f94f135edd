"""Let a bundle rank all captions of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.matching.captions import CAPTIONS, Captioned
from edgevqa.runtime.pipeline import Pipeline

BACKEND = "onnxruntime"


class Ranked(msgspec.Struct, kw_only=True, frozen=True):
    """How one variant ranks: percent of pictures with the right caption first, and with eager PyTorch's first.

    `mean_rank` is the right caption's, 1 at best.
    """

    accuracy: float
    as_eager: float
    mean_rank: float


def rank_bundle(bundle: Path, variant: str, asked: Captioned, expected: NDArray[Any]) -> Ranked:
    """Rank `CAPTIONS` for every picture; `expected` are the captions that eager PyTorch puts first, (pictures,)."""
    first: list[int] = []
    ranks: list[int] = []
    with Pipeline.load(bundle, precision=variant, backend=BACKEND, threads=1, max_batch=len(CAPTIONS)) as pipeline:
        for picture, right in zip(asked.pictures, asked.captions, strict=True):
            answer = pipeline.answer(picture, "", choices=CAPTIONS)
            scores = np.array([(answer.scores or {})[caption] for caption in CAPTIONS])
            first.append(CAPTIONS.index(answer.text))
            ranks.append(1 + int((scores > scores[right]).sum()))
    chosen = np.array(first)
    return Ranked(
        accuracy=100 * float((chosen == asked.captions).mean()),
        as_eager=100 * float((chosen == expected).mean()),
        mean_rank=float(np.mean(ranks)),
    )
