"""What the TensorRT backends decide without a GPU: options, profiles, memory, dtypes."""

from __future__ import annotations

import numpy as np
import pytest

from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import BundleError, ConfigError, InputError
from edgevqa.runtime.manifest import Axis, TensorSpec
from edgevqa.runtime.sessions.trt.captured import launch_key
from edgevqa.runtime.sessions.trt.dtypes import engine_dtype, from_bytes, size_bytes, to_bytes
from edgevqa.runtime.sessions.trt.memory import ALIGNMENT, FreeBlocks, block_bytes, slices
from edgevqa.runtime.sessions.trt.options import EngineOptions, read_options
from edgevqa.runtime.sessions.trt.profiles import EngineInputs, choose_profile, fixed_capacity

WORDS: list[Axis] = ["batch", "words"]
PAST: list[Axis] = ["batch", 2, "capacity", 4]


def side(low: list[int], high: list[int]) -> ShapeRange:
    return ShapeRange(min=low, opt=high, max=high)


def takes(*profiles: Profile, name: str = "input_ids", shape: list[Axis] | None = None) -> EngineInputs:
    spec = TensorSpec(name=name, dtype="int64", shape=WORDS if shape is None else shape)
    return EngineInputs(graph="question_encoder", target="rtx", specs=[spec], profiles=list(profiles))


ONE: Profile = {"input_ids": side([1, 1], [1, 30])}
SEVERAL: Profile = {"input_ids": side([1, 1], [8, 30])}


def test_the_tightest_profile_that_holds_the_shapes_is_chosen() -> None:
    for engine in (takes(ONE, SEVERAL), takes(SEVERAL, ONE)):
        tight = engine.profiles.index(ONE)
        assert choose_profile(engine, {"input_ids": (1, 30)}) == tight
        assert choose_profile(engine, {"input_ids": (2, 1)}) == 1 - tight
        assert choose_profile(engine, {"input_ids": (8, 30)}) == 1 - tight


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((9, 5), r"batch of 1 or 1 to 8 \(input_ids\), but got 9.*edgevqa build BUNDLE --target rtx --batch 1,9"),
        ((2, 31), r"words of 1 to 30 \(input_ids\), but got 31.*--max-question 31"),
        ((1, 0), "words of 1 to 30"),
    ],
)
def test_shapes_that_no_profile_holds_are_told_with_the_range_and_the_build(shape: tuple[int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose_profile(takes(ONE, SEVERAL), {"input_ids": shape})


def test_shapes_that_only_no_single_profile_holds_are_told_by_the_widest() -> None:
    long: Profile = {"input_ids": side([1, 1], [1, 60])}
    with pytest.raises(InputError, match=r"words of 1 to 30.*but got 40"):
        choose_profile(takes(long, SEVERAL), {"input_ids": (4, 40)})


@pytest.mark.parametrize(
    ("name", "axis", "option"),
    [
        ("x", "keys", "--max-question N, with 3 more than now"),
        ("x", "capacity", "--max-new-tokens 8"),
        ("x", "frames", "--axis frames=1:8:8"),
        ("x", "image", "--batch 1,8"),
        ("input_ids", "length", "--max-prompt 8"),
        ("decoder_input_ids", "length", "--max-question 7"),
    ],
)
def test_each_axis_has_its_option(name: str, axis: str, option: str) -> None:
    engine = takes({name: side([1], [5])}, name=name, shape=[axis])
    with pytest.raises(InputError) as caught:
        choose_profile(engine, {name: (8,)})
    assert str(caught.value).endswith(option)


def test_a_capacity_of_one_size_is_a_number_for_the_flow() -> None:
    spec = TensorSpec(name="past_key.0", dtype="float32", shape=list(PAST))
    one: Profile = {"past_key.0": side([1, 2, 6, 4], [8, 2, 6, 4])}
    other: Profile = {"past_key.0": side([1, 2, 9, 4], [8, 2, 9, 4])}
    assert fixed_capacity([spec], [one, one])[0].shape == ["batch", 2, 6, 4]
    assert fixed_capacity([spec], [one, other])[0].shape == PAST


def test_options_are_read_from_strings() -> None:
    assert read_options({}) == EngineOptions()
    read = read_options({"target": "rtx", "cuda_graphs": "0", "device": "1", "runtime": "lean", "mapped_inputs": "1"})
    assert read == EngineOptions(target="rtx", cuda_graphs=False, device=1, runtime="lean", mapped_inputs=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cuda_graph": "1"}, "no option cuda_graph; expected target, device, cuda_graphs"),
        ({"cuda_graphs": "yes"}, "cuda_graphs is 'yes'; expected 0 or 1"),
        ({"device": "-1"}, "device is '-1'"),
        ({"runtime": "slim"}, "expected auto, full, lean, dispatch"),
    ],
)
def test_wrong_options_are_refused_by_name(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_options(given)


def test_a_runtime_library_must_be_there() -> None:
    with pytest.raises(InputError, match="is no file"):
        read_options({"runtime_library": "/no/such/libnvinfer_lean.so"})


def test_block_sizes_recur_and_waste_little() -> None:
    sizes = [block_bytes(size) for size in range(1, 200_000, 37)]
    assert len(set(sizes)) < 90
    for size in [1, 255, 256, 257, 5000, 10**6, 123_456_789]:
        block = block_bytes(size)
        assert size <= block < size + max(ALIGNMENT, size / 7)
        assert block % ALIGNMENT == 0
        assert block_bytes(block) == block


def test_slices_are_aligned_and_do_not_overlap() -> None:
    offsets, total = slices([300, 1, 256])
    assert offsets == [0, 512, 768]
    assert total == 1024


def test_the_last_block_of_the_right_size_is_taken() -> None:
    free = FreeBlocks(max_bytes=1000)
    assert free.put(1, 100) == free.put(2, 100) == free.put(3, 300) == []
    assert (free.take(100), free.take(100), free.take(100)) == (2, 1, None)
    assert free.size_bytes == 300


def test_blocks_beyond_the_bound_are_dropped_oldest_first() -> None:
    free = FreeBlocks(max_bytes=1000)
    free.put(1, 400)
    free.put(2, 400)
    assert free.put(3, 900) == [1, 2]
    assert free.put(4, 2000) == [3, 4]
    assert (free.size_bytes, free.clear()) == (0, [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "bool", "uint8"])
def test_bytes_and_back(dtype: str) -> None:
    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    data = to_bytes(array, dtype)
    assert data.nbytes == size_bytes((2, 3), dtype)
    back = from_bytes(data, (2, 3), dtype)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bfloat16_is_rounded_to_nearest_even_and_widened_exactly() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.1415927, 65504.0, np.inf, np.nan, 0.0], dtype=np.float32)
    assert engine_dtype(values, "bfloat16") == "bfloat16"
    back = from_bytes(to_bytes(values, "bfloat16"), values.shape, "bfloat16")
    np.testing.assert_array_equal(back, np.array([1.0, 1.0, 1.015625, -3.140625, 65536.0, np.inf, np.nan, 0.0]))


def test_a_dtype_that_engines_never_have() -> None:
    with pytest.raises(BundleError, match="complex64"):
        size_bytes((1,), "complex64")


def test_launches_are_known_by_profile_and_shapes() -> None:
    a = {"x": np.zeros((1, 2)), "y": np.zeros((3,))}
    same = {"x": np.ones((1, 2)), "y": np.ones((3,))}
    assert launch_key(0, a) == launch_key(0, same)
    assert launch_key(0, a) != launch_key(1, a)
    assert launch_key(0, a) != launch_key(0, {**a, "y": np.zeros((4,))})
