"""The ONNX Runtime backend: outputs that last, inputs that are checked, files that do not fit."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, EdgeVQAError, InputError
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor
from edgevqa.runtime.sessions.ort import OrtSession, OrtTensor

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def trunk(bundle: Bundle) -> Iterator[Session]:
    with open_session(bundle, "fp32", "vision_trunk", options=SessionOptions(threads=1)) as session:
        yield session


@pytest.fixture
def fusion(bundle: Bundle) -> Iterator[Session]:
    with open_session(bundle, "fp32", "vision_fusion") as session:
        yield session


def test_outputs_stay_valid_after_the_next_run_and_after_close(trunk: Session) -> None:
    first = trunk.run(TRUNK)["trunk_states"]
    kept = first.numpy()
    second = trunk.run({"pixel_values": TRUNK["pixel_values"] * 5})["trunk_states"].numpy()
    assert not np.allclose(kept, second)
    trunk.close()
    np.testing.assert_array_equal(first.numpy(), kept)
    assert first.shape == (2, 4, 6)


def test_a_host_copy_outlives_its_tensor(trunk: Session) -> None:
    copy = trunk.run(TRUNK)["trunk_states"].numpy()
    expected = copy.tolist()
    gc.collect()
    _ = [np.full((2, 4, 6), 9.0, dtype=np.float32) for _ in range(100)]
    assert copy.flags.owndata
    assert copy.tolist() == expected


def test_outputs_flow_into_the_next_graph_without_a_copy(trunk: Session, fusion: Session) -> None:
    states = trunk.run({"pixel_values": TRUNK["pixel_values"][:1]})["trunk_states"]
    question: dict[str, Tensor | Array] = {
        "question_states": np.ones((3, 5, 8), dtype=np.float32),
        "attention_mask": np.ones((3, 5), dtype=np.int64),
    }
    direct = fusion.run({"trunk_states": states, **question})["image_states"]
    through_host = fusion.run({"trunk_states": states.numpy(), **question})["image_states"]
    assert isinstance(states, OrtTensor)
    assert direct.shape == (3, 4, 6)
    np.testing.assert_array_equal(direct.numpy(), through_host.numpy())


def test_arrays_of_any_layout_and_byte_order_give_the_same(trunk: Session) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = trunk.run({"pixel_values": pixels})["trunk_states"].numpy()
    for same in (np.asfortranarray(pixels), pixels[..., ::-1][..., ::-1], pixels.astype(">f4")):
        np.testing.assert_array_equal(trunk.run({"pixel_values": same})["trunk_states"].numpy(), expected)


def test_wrong_names_are_all_listed(fusion: Session) -> None:
    with pytest.raises(InputError) as caught:
        fusion.run({"trunk_states": np.ones((1, 4, 6), np.float32), "pixels": np.ones(1)})
    message = str(caught.value)
    for part in ("'vision_fusion'", "question_states float32 (batch, words, 8)", "attention_mask", "unknown: pixels"):
        assert part in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 8, 8)), "expects pixel_values float32 .image, 3, 8, 8., but got float64"),
        (np.ones((2, 3, 8), np.float32), r"expects pixel_values.*got shape \(2, 3, 8\)"),
        (np.ones((2, 3, 8, 9), np.float32), r"got shape \(2, 3, 8, 9\)"),
        (np.array("words"), "got <U5"),
        (np.array([None]), "got object"),
    ],
)
def test_wrong_tensors_name_graph_and_specification(trunk: Session, array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match="'vision_trunk'") as caught:
        trunk.run({"pixel_values": array})
    assert caught.match(message)


def test_axes_of_one_name_have_one_size(fusion: Session) -> None:
    inputs: dict[str, Tensor | Array] = {
        "trunk_states": np.ones((1, 4, 6), np.float32),
        "question_states": np.ones((2, 5, 8), np.float32),
        "attention_mask": np.ones((2, 7), np.int64),
    }
    with pytest.raises(InputError, match=r"attention_mask int64.*words = 5.*got shape \(2, 7\)"):
        fusion.run(inputs)


def test_a_failure_inside_the_graph_names_it(fusion: Session) -> None:
    inputs: dict[str, Tensor | Array] = {
        "trunk_states": np.ones((3, 4, 6), np.float32),  # neither 1 nor the batch
        "question_states": np.ones((2, 5, 8), np.float32),
        "attention_mask": np.ones((2, 5), np.int64),
    }
    with pytest.raises(EdgeVQAError, match="Graph 'vision_fusion' failed in ONNX Runtime"):
        fusion.run(inputs)


def test_a_closed_session_says_so(trunk: Session) -> None:
    trunk.close()
    trunk.close()
    with pytest.raises(EdgeVQAError, match="was closed"):
        trunk.run(TRUNK)


def test_a_file_that_is_no_graph(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "vision_trunk.onnx"
    path.write_bytes(b"these bytes are no graph")
    with pytest.raises(BundleError, match=r"cannot load .*vision_trunk\.onnx"):
        OrtSession(path, "vision_trunk", bundle.graph("fp32", "vision_trunk"), SessionOptions())


def test_a_graph_that_is_not_the_manifests(bundle: Bundle) -> None:
    path = bundle.graph_path("fp32", "projector")
    with pytest.raises(BundleError, match="other inputs than the manifest says: image_states, pixel_values"):
        OrtSession(path, "vision_trunk", bundle.graph("fp32", "vision_trunk"), SessionOptions())


def test_an_input_of_another_dtype_than_the_manifests(bundle: Bundle) -> None:
    spec = bundle.graph("fp32", "vision_trunk")
    half = msgspec.structs.replace(spec, inputs=[msgspec.structs.replace(spec.inputs[0], dtype="float16")])
    with pytest.raises(BundleError, match="pixel_values"):
        OrtSession(bundle.graph_path("fp32", "vision_trunk"), "vision_trunk", half, SessionOptions())
