"""What quantising does to the output of Linear layers, on the rows that calibration kept of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevqa.calibration.observation.ranges import activation_range
from edgevqa.calibration.observation.statistics import TensorStatistics
from edgevqa.calibration.quantization.formats import Floats, Format, Scale


@dataclass(frozen=True, kw_only=True)
class Error:
    """Energy of the rounding noise of an output, and of the output itself."""

    noise: float
    signal: float

    @property
    def relative(self) -> float:
        """||y - yq|| / ||y||; 0 where the output is always zero."""
        return float(np.sqrt(self.noise / self.signal)) if self.signal > 0 else 0.0

    def __add__(self, other: Error) -> Error:
        return Error(noise=self.noise + other.noise, signal=self.signal + other.signal)


NO_ERROR = Error(noise=0.0, signal=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A weight (in, out) as it is, as it is rounded, and the energy of each of its rows (in,)."""

    exact: Floats
    rounded: Floats
    energy: Floats

    @classmethod
    def of(cls, exact: Floats, rounded: Floats) -> Weights:
        return cls(exact=exact, rounded=rounded, energy=np.square(rounded).sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class ChosenRange:
    """How an activation is quantised, by which method, and the error of each layer that reads it."""

    scale: Scale
    method: str
    errors: tuple[Error, ...]

    @property
    def cost(self) -> float:
        """Sum of the layers' relative noise energies."""
        return sum(error.relative**2 for error in self.errors)


def output_error(statistics: TensorStatistics, scale: Scale | None, weights: Weights) -> Error:
    """The error of x W where x is rounded to `scale` (None: left as it is) and W is rounded.

    What lies beyond the range is counted as often as it was seen in the whole calibration set, where the kept rows may
    hold too little of it.
    """
    rows = statistics.rows
    exact = rows @ weights.exact
    rounded = (rows if scale is None else scale.round(rows)) @ weights.rounded
    noise = float(np.square(exact - rounded, dtype=np.float64).sum())
    if scale is not None:
        noise += len(rows) * _unseen_clipping(statistics, scale, weights.energy)
    return Error(noise=noise, signal=float(np.square(exact, dtype=np.float64).sum()))


def choose_range(
    statistics: TensorStatistics, readers: Sequence[Weights], kind: Format, methods: Sequence[str]
) -> ChosenRange:
    """The method with the least output error of the layers that read the tensor; the first of equals."""
    found: dict[tuple[float, int], ChosenRange] = {}
    for method in methods:
        scale = kind.activation(*activation_range(statistics, method, symmetric=kind.symmetric))
        if (scale.scale, scale.zero_point) not in found:
            errors = tuple(output_error(statistics, scale, weights) for weights in readers)
            found[scale.scale, scale.zero_point] = ChosenRange(scale=scale, method=method, errors=errors)
    return min(found.values(), key=lambda chosen: chosen.cost)


def _unseen_clipping(statistics: TensorStatistics, scale: Scale, energy: Floats) -> float:
    """Noise energy a row from values beyond the range that are no part of the kept rows."""
    low, high = scale.low, scale.high
    if statistics.low >= low and statistics.high <= high:
        return 0.0
    centres = (np.arange(len(statistics.counts)) + 0.5) * (2 * statistics.limit / len(statistics.counts))
    beyond = _beyond(centres - statistics.limit, low, high)
    overall = float((statistics.counts * beyond).sum() / max(int(statistics.counts.sum()), 1))
    kept = float(_beyond(statistics.rows.astype(np.float64), low, high).mean())
    spread = max(overall - kept, 0.0) * float(energy.sum())
    farthest = np.maximum(statistics.channel_absmax - max(-low, high), 0.0)  # each was seen at least once
    return max(spread, float((np.square(farthest) * energy).sum()) / statistics.row_count)


def _beyond(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.floating]:
    """Squares of how far values lie outside [low, high]."""
    squares: NDArray[np.floating] = np.square(np.maximum(values - high, 0.0) + np.maximum(low - values, 0.0))
    return squares
