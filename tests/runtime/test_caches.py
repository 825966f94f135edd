"""Bounded caches and the decoder's past."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.caches import HostKeyValueCache, LruCache, picture_key
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.manifest import Axis, TensorSpec


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache: LruCache[str, int] = LruCache(max_items=2, max_bytes=100)
    cache.put("a", 1, size_bytes=10)
    cache.put("b", 2, size_bytes=10)
    assert cache.get("a") == 1  # b is now the oldest
    cache.put("c", 3, size_bytes=10)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert (len(cache), cache.size_bytes) == (2, 20)


def test_bytes_bound_the_cache() -> None:
    cache: LruCache[int, str] = LruCache(max_items=100, max_bytes=25)
    for key in range(4):
        cache.put(key, "x", size_bytes=10)
    assert [cache.get(key) for key in range(4)] == [None, None, "x", "x"]
    cache.put(9, "too large", size_bytes=26)
    assert cache.get(9) is None
    assert len(cache) == 2


def test_a_value_put_again_is_counted_once() -> None:
    cache: LruCache[str, str] = LruCache(max_items=4, max_bytes=100)
    cache.put("a", "old", size_bytes=60)
    cache.put("a", "new", size_bytes=70)
    assert (cache.get("a"), cache.size_bytes) == ("new", 70)
    cache.clear()
    assert (len(cache), cache.size_bytes, cache.get("a")) == (0, 0, None)


@pytest.mark.parametrize("bounds", [(0, 100), (5, 0)])
def test_a_bound_of_zero_keeps_nothing(bounds: tuple[int, int]) -> None:
    cache: LruCache[str, int] = LruCache(max_items=bounds[0], max_bytes=bounds[1])
    cache.put("a", 1, size_bytes=1)
    assert cache.get("a") is None


def test_a_picture_is_known_by_its_pixels_and_size() -> None:
    rgb = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    other = rgb.copy()
    other[2, 3, 2] += 1
    assert picture_key(rgb) == picture_key(np.asfortranarray(rgb))
    assert len({picture_key(rgb), picture_key(other), picture_key(rgb.reshape(4, 3, 3))}) == 3


def specs(shape: list[Axis]) -> list[TensorSpec]:
    names = ("decoder_input_ids", "past_key.0", "past_value.0")
    return [TensorSpec(name=name, dtype="float32", shape=list(shape)) for name in names]


class Given:
    """A tensor that a graph gave."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape

    def numpy(self) -> np.ndarray:
        return self.array


def new(value: float) -> dict[str, Any]:
    rows = np.arange(3, dtype=np.float32)[:, None, None, None] * 10
    key = np.broadcast_to(rows + value, (3, 2, 1, 4))
    return {"new_key.0": Given(key), "new_value.0": Given(-key), "logits": Given(key)}


def test_new_keys_are_written_at_the_length_in_place() -> None:
    cache = HostKeyValueCache(specs(["batch", 2, "capacity", 4]), 3, 5)
    buffers = dict(cache.inputs())
    assert {name: value.shape for name, value in buffers.items()} == dict.fromkeys(
        ("past_key.0", "past_value.0"), (3, 2, 5, 4)
    )
    cache.append(new(1))
    cache.append(new(2))
    assert cache.length == 2
    key = buffers["past_key.0"]
    assert cache.inputs()["past_key.0"] is key
    assert isinstance(key, np.ndarray)
    assert key[:, 1, :, 3].tolist() == [[1, 2, 0, 0, 0], [11, 12, 0, 0, 0], [21, 22, 0, 0, 0]]
    assert np.asarray(buffers["past_value.0"])[2, 0, :, 0].tolist() == [-21, -22, 0, 0, 0]


def test_reordering_moves_whole_rows_also_when_they_cross() -> None:
    cache = HostKeyValueCache(specs(["batch", 2, "capacity", 4]), 3, 4)
    cache.append(new(1))
    cache.append(new(2))
    cache.reorder(np.array([2, 0, 0]))
    key = np.asarray(cache.inputs()["past_key.0"])
    assert key[:, 0, :2, 0].tolist() == [[21, 22], [1, 2], [1, 2]]
    cache.append(new(3))
    assert key[:, 0, :3, 0].tolist() == [[21, 22, 3], [1, 2, 13], [1, 2, 23]]


def test_the_keys_of_the_last_token_are_not_needed() -> None:
    cache = HostKeyValueCache(specs(["batch", 2, "capacity", 4]), 3, 1)
    cache.append(new(1))
    cache.append(new(2))
    assert cache.length == 1
    assert np.asarray(cache.inputs()["past_key.0"])[0, 0, 0, 0] == 1


@pytest.mark.parametrize("shape", [["batch", "heads", "capacity", 4], ["batch", 2, 4]])
def test_a_decoder_without_fixed_heads_is_refused(shape: list[Axis]) -> None:
    with pytest.raises(BundleError, match=r"past_key\.0"):
        HostKeyValueCache(specs(shape), 1, 4)
