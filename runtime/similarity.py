"""How alike embeddings of pictures and texts are, and the probability that a model reads from that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.decoding import Floats, log_softmax
from edgevqa.runtime.errors import NotFiniteError
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.sessions.base import Array

Float32s = NDArray[np.float32]


def cosines(image_embeds: Array, text_embeds: Array) -> Floats:
    """(images, texts) in float64 of normalised embeddings.

    `image_embeds` are (images, width), or (images, vectors, width) where a picture has several: the closest one counts.
    `text_embeds` are (texts, width).
    """
    images, texts = image_embeds.astype(np.float64), text_embeds.astype(np.float64)
    products: Floats = images @ texts.T
    return products.max(axis=1) if products.ndim == 3 else products


def logits(similarity: Floats, matching: MatchingSpec) -> Floats:
    """`scale` x cosine + `bias`, of what `cosines` gave."""
    return similarity * matching.scale + matching.bias


def log_probabilities(values: Floats, activation: str) -> Floats:
    """Log-probabilities of logits: over the last axis with `softmax`, each of its own with `sigmoid`.

    Raises `NotFiniteError` for NaN and infinity.
    """
    return log_softmax(values) if activation == "softmax" else log_sigmoid(values)


def log_sigmoid(values: Any) -> Floats:
    """log(1 / (1 + exp(-values))), float64. Raises `NotFiniteError` for NaN and infinity."""
    given = np.asarray(values, dtype=np.float64)
    if not np.isfinite(given).all():
        raise NotFiniteError("scores")
    found: Floats = -np.logaddexp(0.0, -given)
    return found
