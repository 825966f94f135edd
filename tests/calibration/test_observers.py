from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevqa.calibration.observation import observers
from edgevqa.calibration.observation.observers import BINS, ROWS, Histogram, TensorObserver

Rows = NDArray[np.float32]


def growing(count: int, channels: int) -> Rows:
    """Rows whose size grows from a millionth to a thousand, with exact powers of two and zeros among them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, channels)) * np.geomspace(1e-6, 1e3, count)[:, None]
    rows[::7, 0], rows[::5, 1], rows[::3, 2] = 0.0, 2.0 ** np.resize(np.arange(-20, 10), len(rows[::5])), -(2.0**4)
    return rows.astype(np.float32)


def observe(rows: Rows, parts: int) -> TensorObserver:
    observer = TensorObserver(3, rows.shape[1])
    for part in np.array_split(rows, parts):
        assert observer.update(part)
    return observer


@pytest.mark.parametrize("order", [lambda rows: rows, lambda rows: rows[::-1]], ids=["growing", "shrinking"])
def test_a_histogram_that_grew_is_the_one_made_at_once(order: Callable[[Rows], Rows]) -> None:
    rows = order(growing(200, 16))
    histogram = Histogram()
    for row in rows:
        histogram.add(row, float(np.abs(row).max()))
    expected, _ = np.histogram(rows.astype(np.float64), bins=BINS, range=(-histogram.limit, histogram.limit))
    assert histogram.limit == 2.0 ** np.ceil(np.log2(np.abs(rows).max()))
    assert np.array_equal(histogram.counts, expected)


def test_zeros_before_anything_else_do_not_coarsen_the_histogram() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((1, 5), dtype=np.float32), 0.0)
    histogram.add(np.full((1, 5), 1e-3, dtype=np.float32), 1e-3)
    assert histogram.limit == 2.0**-9
    assert histogram.counts[BINS // 2] == 5
    assert histogram.counts.sum() == 10


def test_figures_are_those_of_all_rows_at_once() -> None:
    rows = growing(500, 24)
    found = observe(rows, 37).statistics()
    assert (found.low, found.high) == (rows.min(), rows.max())
    assert np.array_equal(found.channel_absmax, np.abs(rows).max(axis=0))
    assert np.allclose(found.channel_mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert found.row_count == 500
    assert found.counts.sum() == rows.size


def test_the_mean_survives_many_rows_far_from_zero() -> None:
    """A float32 sum would have lost its last digits."""
    observer = TensorObserver(0, 1)
    part = np.full((1000, 1), 1000.1, dtype=np.float32)
    for _ in range(300):
        observer.update(part)
    assert float(observer.statistics().channel_mean[0]) == float(part[0, 0])


def test_axes_before_the_channels_are_rows() -> None:
    rows = growing(60, 8)
    observer = TensorObserver(3, 8)
    observer.update(rows.reshape(4, 3, 5, 8))
    found = observer.statistics()
    assert found.row_count == 60
    assert np.array_equal(found.channel_absmax, observe(rows, 1).statistics().channel_absmax)


def test_kept_rows_depend_on_the_seed_alone_not_on_how_rows_came() -> None:
    rows = growing(1000, 4)
    one, many = observe(rows, 1).statistics().rows, observe(rows, 333).statistics().rows
    assert one.shape == (ROWS, 4)
    assert np.array_equal(one, many)
    other = TensorObserver(4, 4)
    other.update(rows)
    assert not np.array_equal(one, other.statistics().rows)


def test_kept_rows_are_a_uniform_sample_without_repetition() -> None:
    rows = np.arange(20_000, dtype=np.float32)[:, None]
    quarters = np.zeros(4)
    for seed in range(40):
        observer = TensorObserver(seed, 1)
        for part in np.array_split(rows, 50):
            observer.update(part)
        kept = observer.statistics().rows[:, 0]
        assert len(set(kept.tolist())) == ROWS
        quarters += np.histogram(kept, bins=4, range=(0, 20_000))[0]
    expected = 40 * ROWS / 4
    assert np.abs(quarters - expected).max() < 5 * np.sqrt(expected)


def test_fewer_rows_than_are_kept_are_all_there() -> None:
    rows = growing(50, 4)
    found = observe(rows, 9).statistics()
    assert sorted(map(tuple, found.rows.tolist())) == sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(wrong: float) -> None:
    observer = observe(growing(50, 4), 2)
    before = {key: array.copy() for key, array in observer.state().items()}
    bad = growing(10, 4)
    bad[6, 2] = wrong
    assert not observer.update(bad)
    assert all(np.array_equal(array, before[key]) for key, array in observer.state().items())


def test_a_restored_observer_goes_on_bit_for_bit() -> None:
    rows = growing(900, 12)
    whole, half = observe(rows, 9), observe(rows[:500], 5)
    restored = TensorObserver.restore(3, {key: array.copy() for key, array in half.state().items()})
    for part in np.array_split(rows[500:], 4):
        restored.update(part)
    for key, array in whole.state().items():
        assert np.array_equal(array, restored.state()[key]), key


def test_memory_does_not_grow() -> None:
    few, many = observe(growing(10, 16), 2), observe(growing(5000, 16), 500)
    assert sum(a.nbytes for a in few.state().values()) == sum(a.nbytes for a in many.state().values())


def test_of_large_tensors_some_rows_enter_the_histogram_and_all_enter_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "MAX_BINNED", 400)
    rows = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    rows[57, 3] = 50.0
    observer = TensorObserver(0, 16)
    for _ in range(4):
        observer.update(rows)
    found = observer.statistics()
    assert found.high == 50.0
    assert found.channel_absmax[3] == 50.0
    assert found.counts.sum() == rows.size  # a quarter each time, another one each time: all rows came once
    assert found.counts[BINS // 2 :].argmax() < 100
    assert found.counts[int((50.0 / found.limit + 1) * BINS / 2)] == 1
