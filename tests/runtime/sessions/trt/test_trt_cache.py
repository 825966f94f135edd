"""The decoder's keys and values on the simulated GPU: in place, in order, and where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import HostKeyValueCache, MakesKeyValueCache
from edgevqa.runtime.errors import ConfigError, EdgeVQAError
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, Tensor
from edgevqa.runtime.sessions.trt.dtypes import to_bytes
from edgevqa.runtime.sessions.trt.session import EngineSession
from edgevqa.runtime.sessions.trt.tensors import DeviceTensor, upload

ROWS, CAPACITY = 3, 6


@pytest.fixture
def decoder(simulated: Any, engines: Callable[..., Path], toy_bundle: Path) -> Iterator[EngineSession]:
    bundle = Bundle.open(engines(toy_bundle, axes={"positions": (5, 8, 16)}))
    with open_session(bundle, "fp32", "language_decoder", backend="tensorrt") as session:
        assert isinstance(session, EngineSession)
        yield session


def step(length: int, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    cross = {f"cross_{kind}.0": random.normal(size=(ROWS, 2, 7, 4)).astype(np.float32) for kind in ("key", "value")}
    return {
        **cross,
        "decoder_input_ids": random.integers(0, 9, (ROWS, 1)),
        "cache_length": np.array([length]),
        "encoder_attention_mask": np.ones((ROWS, 7), np.int64),
    }


def rows_of(inputs: Any) -> dict[str, Array]:
    return {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in inputs.items()}


def test_the_capacity_that_the_engine_has_is_what_the_flow_sees(decoder: EngineSession) -> None:
    assert isinstance(decoder, MakesKeyValueCache)
    past = next(spec for spec in decoder.inputs if spec.name == "past_key.0")
    assert past.shape == ["batch", 2, CAPACITY, 4]


def test_it_begins_with_zeros_also_where_another_was(decoder: EngineSession) -> None:
    for _ in range(3):
        cache = decoder.make_cache(ROWS, CAPACITY)
        assert not any(value.any() for value in rows_of(cache.inputs()).values())
        cache.append(decoder.run({**step(0, 1), **cache.inputs()}))
        assert any(value.any() for value in rows_of(cache.inputs()).values())


def test_steps_and_reordering_are_those_of_the_host_cache(decoder: EngineSession) -> None:
    device = decoder.make_cache(ROWS, CAPACITY)
    host = HostKeyValueCache(decoder.inputs, ROWS, CAPACITY)
    places = {name: tensor.address for name, tensor in tensors(device.inputs()).items()}
    orders = [[0, 1, 2], [2, 0, 0], [1, 0, 2], [0, 0, 0], [2, 1, 0]]
    for length, order in enumerate(orders):
        given: dict[str, Tensor | Array] = dict(step(length, length))
        outputs = decoder.run({**given, **device.inputs()})
        same = decoder.run({**given, **host.inputs()})
        np.testing.assert_array_equal(outputs["logits"].numpy(), same["logits"].numpy())
        for cache in (device, host):
            cache.append(outputs)
            cache.reorder(np.array(order))
        assert device.length == host.length
        for name, value in rows_of(host.inputs()).items():
            np.testing.assert_array_equal(rows_of(device.inputs())[name], value)
    assert {name: tensor.address for name, tensor in tensors(device.inputs()).items()} == places


def tensors(inputs: Any) -> dict[str, DeviceTensor]:
    assert all(isinstance(value, DeviceTensor) for value in inputs.values())
    return dict(inputs)


def test_nothing_of_it_crosses_the_bus(decoder: EngineSession) -> None:
    cache = decoder.make_cache(ROWS, CAPACITY)
    outputs = decoder.run({**step(0, 1), **cache.inputs()})
    before = decoder.traffic.uploads, decoder.traffic.downloads
    cache.append(outputs)
    cache.reorder(np.array([1, 0, 2]))
    assert (decoder.traffic.uploads, decoder.traffic.downloads) == before


def test_the_next_answer_gets_the_same_place_and_its_launches_are_replayed(decoder: EngineSession) -> None:
    places: set[int] = set()
    for answer in range(4):
        cache = decoder.make_cache(ROWS, CAPACITY)
        places |= {tensor.address for tensor in tensors(cache.inputs()).values()}
        for length in range(3):
            cache.append(decoder.run({**step(length, answer), **cache.inputs()}))
        del cache
    assert len(places) == 2
    assert decoder.traffic.launches == 2
    assert decoder.traffic.replays == 10


def test_two_caches_at_once_do_not_mix(decoder: EngineSession) -> None:
    caches = [decoder.make_cache(ROWS, CAPACITY) for _ in range(2)]
    for length in range(3):
        for number, cache in enumerate(caches):
            cache.append(decoder.run({**step(length, number * 10 + length), **cache.inputs()}))
    alone = decoder.make_cache(ROWS, CAPACITY)
    for length in range(3):
        alone.append(decoder.run({**step(length, 10 + length), **alone.inputs()}))
    for name, value in rows_of(alone.inputs()).items():
        np.testing.assert_array_equal(rows_of(caches[1].inputs())[name], value)


def test_tensors_of_a_cache_that_is_gone_keep_its_memory(decoder: EngineSession) -> None:
    first = decoder.make_cache(ROWS, CAPACITY)
    first.append(decoder.run({**step(0, 1), **first.inputs()}))
    kept = tensors(first.inputs())["past_key.0"]
    content = kept.numpy()
    del first
    other = decoder.make_cache(ROWS, CAPACITY)
    other.append(decoder.run({**step(0, 2), **other.inputs()}))
    np.testing.assert_array_equal(kept.numpy(), content)


def test_the_last_tokens_keys_are_not_needed(decoder: EngineSession) -> None:
    cache = decoder.make_cache(ROWS, CAPACITY)
    for length in range(CAPACITY + 1):
        cache.append(decoder.run({**step(min(length, CAPACITY), length), **cache.inputs()}))
    assert cache.length == CAPACITY


def chunk(slots: int, seed: int, *, dtype: str = "float32") -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {f"new_{kind}.0": random.normal(size=(ROWS, 2, slots, 4)).astype(dtype) for kind in ("key", "value")}


class Foreign:
    """A tensor of another backend."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape

    def numpy(self) -> Array:
        return self.array


@pytest.mark.parametrize("kind", ["host", "not contiguous", "device", "foreign", "mixed"])
def test_chunks_of_several_slots_are_those_of_the_host_cache(decoder: EngineSession, kind: str) -> None:
    """From the host and from the GPU, with single tokens between, until there is no more room."""
    device, host = decoder.make_cache(ROWS, CAPACITY), HostKeyValueCache(decoder.inputs, ROWS, CAPACITY)
    for seed, slots in enumerate((2, 1, 2, 3, 2)):
        new = chunk(slots, seed)
        device.append(given(decoder, new, kind))
        host.append(dict(new))
        assert device.length == host.length == min((2, 3, 5, 6, 6)[seed], CAPACITY)
        for name, value in rows_of(host.inputs()).items():
            np.testing.assert_array_equal(rows_of(device.inputs())[name], value)
        order = np.array([[1, 0, 2], [2, 2, 0]][seed % 2])
        device.reorder(order)
        host.reorder(order)


def given(decoder: EngineSession, new: dict[str, Array], kind: str) -> dict[str, Tensor | Array]:
    """The same values where `kind` says."""
    if kind == "not contiguous":
        return {
            name: np.asarray(value.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)) for name, value in new.items()
        }
    if kind == "foreign":
        return {name: Foreign(value) for name, value in new.items()}
    loaded = decoder._open().device
    moved: dict[str, Tensor | Array] = {}
    for name, value in new.items():
        if kind == "device" or (kind == "mixed" and "key" in name):
            with loaded.lane() as lane:
                moved[name] = upload(loaded, lane, to_bytes(value, "float32"), value.shape, "float32")
        else:
            moved[name] = value
    return moved


def test_chunks_that_lie_on_the_gpu_do_not_cross_the_bus(decoder: EngineSession) -> None:
    cache = decoder.make_cache(ROWS, CAPACITY)
    moved = given(decoder, chunk(3, 0), "device")
    before = decoder.traffic.uploads, decoder.traffic.downloads
    cache.append(moved)
    assert (decoder.traffic.uploads, decoder.traffic.downloads) == before
    assert cache.length == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"new_key.0": np.zeros((ROWS, 2, 2, 4), np.float16)}, r"past_key\.0' was given float16 \(3, 2, 2, 4\)"),
        ({"new_value.0": np.zeros((ROWS, 2, 3, 4), np.float32)}, r"as many slots as all the other"),
        (
            {"new_value.0": np.zeros((ROWS + 1, 2, 2, 4), np.float32)},
            r"past_value\.0' was given float32 \(4, 2, 2, 4\)",
        ),
        ({"new_value.0": np.zeros((ROWS, 2, 4), np.float32)}, r"past_value\.0' was given float32 \(3, 2, 4\)"),
    ],
    ids=["dtype", "slots", "rows", "rank"],
)
def test_keys_that_do_not_fit_are_refused_and_leave_the_cache_as_it_was(
    decoder: EngineSession, change: dict[str, Array], told: str
) -> None:
    cache = decoder.make_cache(ROWS, CAPACITY)
    with pytest.raises(EdgeVQAError, match=told):
        cache.append({**chunk(2, 0), **change})
    assert cache.length == 0
    assert not any(value.any() for value in rows_of(cache.inputs()).values())


def test_foreign_keys_are_refused(decoder: EngineSession) -> None:
    cache = decoder.make_cache(ROWS, CAPACITY)
    outputs = decoder.run({**step(0, 1), **cache.inputs()})
    outputs["new_key.0"] = outputs["logits"]
    with pytest.raises(EdgeVQAError, match=r"past_key\.0.*expected float32 \(3, 2, slots, 4\)"):
        cache.append(outputs)


def test_more_tokens_than_the_engine_has_slots_for(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, pictures: list[np.ndarray]
) -> None:
    from edgevqa.runtime import Pipeline

    path = engines(toy_bundle, axes={"positions": (5, 8, 16)}, max_new_tokens=3)
    with (
        Pipeline.load(path, backend="tensorrt") as pipeline,
        pytest.raises(ConfigError, match="takes 3 tokens, but 5 are wanted"),
    ):
        pipeline.answer(pictures[0], "what is it?", max_new_tokens=5)
