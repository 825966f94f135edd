from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevqa.calibration.observation.observers import MAX_BINNED, TensorObserver
from edgevqa.calibration.observation.ranges import METHODS, activation_range
from edgevqa.calibration.observation.statistics import TensorStatistics
from edgevqa.runtime.errors import ConfigError

Values = NDArray[np.float64]
CLIPPING = [method for method in METHODS if method != "max"]
BOTH = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


def observed(values: Values) -> TensorStatistics:
    observer = TensorObserver(0, values.shape[1])
    for part in np.array_split(values.astype(np.float32), -(-values.size // MAX_BINNED)):  # so that all are counted
        assert observer.update(part)
    return observer.statistics()


def gaussian(count: int = 8000) -> Values:
    return np.random.default_rng(0).normal(size=(count, 64))


def with_outlier(size: float) -> Values:
    values = gaussian()
    values[17, 5] = size
    return values


def error(values: Values, low: float, high: float, *, symmetric: bool) -> float:
    """The mean square error of 8 bits over the range."""
    step = high / 127 if symmetric else (high - low) / 255
    lowest, highest = (-127, 127) if symmetric else (round(low / step), round(high / step))
    return float(np.square(np.clip(np.round(values / step), lowest, highest) * step - values).mean())


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_a_uniform_distribution_is_kept_whole(method: str, symmetric: bool) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (8000, 64))
    low, high = activation_range(observed(values), method, symmetric=symmetric)
    assert low == pytest.approx(-1, abs=6e-3)
    assert high == pytest.approx(1, abs=6e-3)


@BOTH
@pytest.mark.parametrize("method", CLIPPING)
def test_a_lone_outlier_is_cut_off(method: str, symmetric: bool) -> None:
    values = with_outlier(40.0)
    statistics = observed(values)
    low, high = activation_range(statistics, method, symmetric=symmetric)
    widest = activation_range(statistics, "max", symmetric=symmetric)
    assert widest == pytest.approx((-40.0 if symmetric else values.min(), 40.0))
    assert high < 30.0
    if method != "mse":
        assert 3.0 < high < 6.0
        assert -6.0 < low < -3.0


@pytest.mark.parametrize(("share", "beyond"), [("99.9", 3.2905), ("99.99", 3.8906), ("99.999", 4.4172)])
def test_percentiles_of_a_gaussian_are_the_known_ones(share: str, beyond: float) -> None:
    """Two-sided: the same share of |x|, and half of what is cut at either end."""
    statistics = observed(gaussian(60_000))
    for symmetric in (True, False):
        low, high = activation_range(statistics, f"percentile-{share}", symmetric=symmetric)
        assert high == pytest.approx(beyond, rel=0.04)
        assert low == pytest.approx(-beyond, rel=0.04)


def test_percentiles_are_those_of_numpy_to_a_fraction_of_a_bin() -> None:
    values = np.abs(gaussian())
    statistics = observed(values)
    width = 2 * statistics.limit / len(statistics.counts)
    for share in ("99.9", "99.99"):
        high = activation_range(statistics, f"percentile-{share}", symmetric=True)[1]
        assert abs(high - float(np.percentile(values, float(share)))) < 0.5 * width


@BOTH
@pytest.mark.parametrize(
    "values",
    [
        gaussian(),
        with_outlier(40.0),
        with_outlier(1000.0),
        np.maximum(gaussian(), 0),
        gaussian() ** 3,
        gaussian() + 2.0,
    ],
    ids=["gaussian", "outlier 40", "outlier 1000", "relu", "cubed", "shifted"],
)
def test_mse_is_the_best_of_the_methods_or_next_to_it(values: Values, symmetric: bool) -> None:
    statistics = observed(values)
    errors = {
        method: error(values, *activation_range(statistics, method, symmetric=symmetric), symmetric=symmetric)
        for method in METHODS
    }
    assert errors["mse"] <= 1.1 * min(errors.values()), errors


def test_exact_zeros_do_not_narrow_the_range() -> None:
    """Nine of ten are zero, as after a ReLU; the rest is uniform: nothing is gained by clipping it."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((8000, 64)) < 0.9, 0.0, rng.uniform(0, 3, (8000, 64)))
    for method in ("entropy", "mse"):
        for symmetric in (True, False):
            assert activation_range(observed(values), method, symmetric=symmetric)[1] > 2.9, method


def test_asymmetric_ranges_follow_the_data() -> None:
    """Like GELU: a short tail below zero, a long one above."""
    values = np.where(gaussian() > 0, np.abs(gaussian()) * 3, -np.abs(gaussian()) * 0.05)
    statistics = observed(values)
    for method in METHODS:
        low, high = activation_range(statistics, method, symmetric=False)
        assert -0.3 < low < -0.1, method
        assert 8.0 < high < 16.0, method
        assert activation_range(statistics, method, symmetric=True)[1] == pytest.approx(high, rel=0.2), method


@BOTH
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values",
    [
        np.full((10, 4), 5.0),
        np.full((10, 4), -0.3),
        np.array([[7.0]]),
        gaussian(100) * 1e-35,
        gaussian(100) * 3e37,
        -np.abs(gaussian(100)) - 1.0,
        np.concatenate([np.zeros((9999, 1)), [[3.0]]]),
    ],
    ids=["constant", "negative constant", "one value", "tiny", "huge", "all below zero", "nearly all zero"],
)
def test_degenerate_tensors_have_a_usable_range(values: Values, method: str, symmetric: bool) -> None:
    low, high = activation_range(observed(values), method, symmetric=symmetric)
    assert np.isfinite([low, high]).all()
    assert low <= 0.0 <= high
    assert low < high
    assert high <= np.abs(values).max() * (1 + 1e-6)
    assert low >= -np.abs(values).max() * (1 + 1e-6)
    if symmetric:
        assert low == -high
    if np.unique(values).size == 1:
        assert max(-low, high) == pytest.approx(float(np.abs(values).max()), rel=2e-3)


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_no_range(method: str, symmetric: bool) -> None:
    assert str(activation_range(observed(np.zeros((5, 3))), method, symmetric=symmetric)) == "(0.0, 0.0)"


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"percentile-98.*max, percentile-99.9, .*entropy, mse"):
        activation_range(observed(gaussian(10)), "percentile-98", symmetric=True)
