"""Scales of quantised weights: one an output channel, clipped where that costs less than it gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevqa.calibration.quantization.formats import Floats, Format, round_weight

CLIPPING = (0.95, 0.9, 0.85, 0.8, 0.7)  # of the largest |w|, besides 1


def absmax_scales(weight: Floats, kind: Format) -> Floats:
    """Scales (out,) of a weight (in, out) that reach its largest values."""
    return kind.scales(np.abs(weight).max(axis=0) / kind.weight_levels)


def clipped_scales(weight: Floats, rows: Sequence[Floats], kind: Format) -> Floats:
    """Scales (out,) with the least error of the products of `rows`, each (rows, in), channel by channel.

    Inputs are taken as independent: the error of a channel is the sum of its weights' squared errors by their inputs'
    energy, which for 8 bits is near to the truth and costs no product.
    """
    energy = np.mean([np.square(part, dtype=np.float64).mean(axis=0) for part in rows], axis=0).astype(np.float32)
    widest = absmax_scales(weight, kind)
    best, least = widest, _noise(weight, widest, energy, kind)
    for share in CLIPPING:
        scales = kind.scales(widest * share)
        noise = _noise(weight, scales, energy, kind)
        best = np.where(noise < least, scales, best)
        least = np.minimum(noise, least)
    return best


def _noise(weight: Floats, scales: Floats, energy: Floats, kind: Format) -> Floats:
    difference = round_weight(weight, scales, kind)
    difference -= weight
    np.square(difference, out=difference)
    noise: Floats = energy @ difference
    return noise
