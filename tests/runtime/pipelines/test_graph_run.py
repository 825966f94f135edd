"""Running one graph on arrays from a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.graph_run import conform, read_arrays, run_graph, write_arrays
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.pipelines.base import PipelineOptions

SPECS = [
    TensorSpec(name="states", dtype="float32", shape=["batch", 3]),
    TensorSpec(name="length", dtype="int64", shape=[1]),
]


def test_arrays_are_cast_and_single_elements_take_the_rank() -> None:
    given = {"states": np.ones((2, 3)), "length": np.array(4.0)}
    found = conform("g", given, SPECS)
    assert (found["states"].dtype, found["states"].shape) == (np.dtype("float32"), (2, 3))
    assert (found["length"].dtype, found["length"].tolist()) == (np.dtype("int64"), [4])
    assert conform("g", {"states": np.ones((2, 3)), "length": np.array([[4]])}, SPECS)["length"].shape == (1,)


@pytest.mark.parametrize("wrong", [np.array(1.5), np.array("4"), np.array(4j), np.array([np.nan])])
def test_what_is_no_integer_is_not_made_one(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="expects length int64"):
        conform("g", {"states": np.ones((2, 3)), "length": wrong}, SPECS)


def test_the_outputs_of_a_graph_by_name(toy_bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, size=(2, 3, 8, 8))
    found = run_graph(toy_bundle, "vision_trunk", {"pixel_values": pixels})
    assert {name: array.shape for name, array in found.items()} == {"trunk_states": (2, 4, 6)}
    past = np.zeros((1, 2, 5, 4))
    cross = np.ones((1, 2, 3, 4))
    inputs: dict[str, Any] = {"past_key.0": past, "past_value.0": past, "cross_key.0": cross, "cross_value.0": cross}
    inputs |= {"decoder_input_ids": 0, "cache_length": 0, "encoder_attention_mask": np.ones((1, 3))}
    decoded = run_graph(
        toy_bundle,
        "language_decoder",
        {name: np.asarray(value) for name, value in inputs.items()},
        PipelineOptions(precision="fp32", threads=1),
    )
    assert set(decoded) == {"logits", "new_key.0", "new_value.0"}


def test_wrong_graphs_and_names(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="vision_trunk"):
        run_graph(toy_bundle, "eyes", {})
    with pytest.raises(InputError, match=r"missing: pixel_values float32 \(image, 3, 8, 8\)\. unknown: pixels"):
        run_graph(toy_bundle, "vision_trunk", {"pixels": np.ones(1)})


def test_arrays_go_through_a_file_unchanged(tmp_path: Path) -> None:
    arrays = {"past_key.0": np.arange(6, dtype=np.float32).reshape(2, 3), "cache_length": np.array([2])}
    write_arrays(tmp_path / "a.npz", arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("attacked"),))


def test_files_that_are_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "single.npy", np.ones(3))
    np.savez(tmp_path / "whole.npz", a=np.ones(1000))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    np.savez(tmp_path / "objects.npz", a=np.array([Attack()], dtype=object))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Attack()))
    for name, message in {
        "absent.npz": "does not exist",
        "text.npz": "not an .npz",
        "single.npy": "single array",
        "half.npz": "not an .npz",
        "objects.npz": "not an .npz",
        "pickle.npz": "not an .npz",
    }.items():
        with pytest.raises(InputError, match=message):
            read_arrays(tmp_path / name)
    assert not (tmp_path / "attacked").exists()


def test_values_too_large_for_the_dtype_are_refused() -> None:
    for large in (np.full((2, 3), 1e300), np.full((2, 3), -1e39)):
        with pytest.raises(InputError, match=r"expects states float32.*too large"):
            conform("g", {"states": large, "length": np.array(1)}, SPECS)
    infinite = conform("g", {"states": np.full((2, 3), np.inf), "length": np.array(1)}, SPECS)
    assert np.isinf(infinite["states"]).all()


def test_places_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_arrays(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        write_arrays(tmp_path, {"a": np.ones(1)})
    write_arrays(tmp_path / "absent" / "a.npz", {"a": np.ones(1)})
    assert list(read_arrays(tmp_path / "absent" / "a.npz")) == ["a"]

    def refuse(path: Path, *_: object, **__: object) -> None:  # root may do everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        write_arrays(tmp_path / "a.npz", {"a": np.ones(1)})
