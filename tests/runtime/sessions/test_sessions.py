"""What every backend's sessions promise: outputs that last, inputs that are checked, files that do not fit."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, EdgeVQAError, InputError
from edgevqa.runtime.sessions import BACKENDS, open_session
from edgevqa.runtime.sessions.base import Array, ProfiledSession, Session, SessionOptions, Tensor
from edgevqa.runtime.sessions.ort_gpu import missing_library
from edgevqa.runtime.sessions.ort_providers import PROVIDERS

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu] if name in PROVIDERS else []


@pytest.fixture(params=[pytest.param(name, marks=marks(name)) for name, row in BACKENDS.items() if row.flavour is None])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not BACKENDS[name].installed():
        pytest.skip(str(BACKENDS[name].missing()))
    if name in PROVIDERS and missing_library(PROVIDERS[name]):
        pytest.skip(missing_library(PROVIDERS[name]))
    return name


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def trunk(bundle: Bundle, backend: str) -> Iterator[Session]:
    options = SessionOptions(threads=1)
    with open_session(bundle, "fp32", "vision_trunk", backend=backend, options=options) as session:
        yield session


@pytest.fixture
def fusion(bundle: Bundle, backend: str) -> Iterator[Session]:
    with open_session(bundle, "fp32", "vision_fusion", backend=backend) as session:
        yield session


def test_outputs_stay_valid_after_the_next_run_and_after_close(trunk: Session) -> None:
    first = trunk.run(TRUNK)["trunk_states"]
    kept = first.numpy()
    for scale in (5, -3, 2):
        assert not np.allclose(kept, trunk.run({"pixel_values": TRUNK["pixel_values"] * scale})["trunk_states"].numpy())
    trunk.close()
    gc.collect()
    np.testing.assert_array_equal(first.numpy(), kept)
    assert first.shape == (2, 4, 6)


def test_a_host_copy_outlives_its_tensor(trunk: Session) -> None:
    copy = trunk.run(TRUNK)["trunk_states"].numpy()
    expected = copy.tolist()
    gc.collect()
    _ = [np.full((2, 4, 6), 9.0, dtype=np.float32) for _ in range(100)]
    assert copy.flags.owndata
    assert copy.flags.writeable
    assert copy.tolist() == expected


def test_the_arrays_given_are_left_alone_and_may_change_after_the_run(trunk: Session) -> None:
    pixels = np.array(TRUNK["pixel_values"])
    states = trunk.run({"pixel_values": pixels})["trunk_states"]
    kept = states.numpy()
    np.testing.assert_array_equal(pixels, TRUNK["pixel_values"])
    pixels[:] = 77
    np.testing.assert_array_equal(states.numpy(), kept)
    frozen = np.array(TRUNK["pixel_values"])
    frozen.flags.writeable = False
    np.testing.assert_array_equal(trunk.run({"pixel_values": frozen})["trunk_states"].numpy(), kept)


def test_outputs_flow_into_the_next_graph(trunk: Session, fusion: Session) -> None:
    states = trunk.run({"pixel_values": TRUNK["pixel_values"][:1]})["trunk_states"]
    question: dict[str, Tensor | Array] = {
        "question_states": np.ones((3, 5, 8), dtype=np.float32),
        "attention_mask": np.ones((3, 5), dtype=np.int64),
    }
    direct = fusion.run({"trunk_states": states, **question})["image_states"]
    through_host = fusion.run({"trunk_states": states.numpy(), **question})["image_states"]
    assert not isinstance(states, np.ndarray)
    assert direct.shape == (3, 4, 6)
    np.testing.assert_array_equal(direct.numpy(), through_host.numpy())


def test_shapes_may_change_from_run_to_run(fusion: Session) -> None:
    random = np.random.default_rng(0)
    for batch, words in ((1, 3), (4, 7), (2, 1), (1, 3)):
        inputs: dict[str, Tensor | Array] = {
            "trunk_states": random.normal(size=(1, 4, 6)).astype(np.float32),
            "question_states": random.normal(size=(batch, words, 8)).astype(np.float32),
            "attention_mask": np.ones((batch, words), np.int64),
        }
        found = fusion.run(inputs)["image_states"].numpy()
        assert found.shape == (batch, 4, 6)
        shifted = found - np.asarray(inputs["trunk_states"])
        np.testing.assert_allclose(shifted, np.broadcast_to(shifted[:, :1], shifted.shape), atol=1e-5)


def test_arrays_of_any_layout_and_byte_order_give_the_same(trunk: Session) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = trunk.run({"pixel_values": pixels})["trunk_states"].numpy()
    for same in (np.asfortranarray(pixels), pixels[..., ::-1][..., ::-1], pixels.astype(">f4")):
        np.testing.assert_array_equal(trunk.run({"pixel_values": same})["trunk_states"].numpy(), expected)


def test_runs_from_several_threads_do_not_mix(trunk: Session) -> None:
    def answer(scale: int) -> bool:
        pixels = TRUNK["pixel_values"] * scale
        found = [trunk.run({"pixel_values": pixels})["trunk_states"] for _ in range(30)]
        return all(np.allclose(tensor.numpy(), one * scale, rtol=1e-4) for tensor in found)

    one = trunk.run(TRUNK)["trunk_states"].numpy()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(answer, (1, 2, 3, 5, 7, 11, 13, 17)))


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


def test_a_failure_inside_the_graph_names_it_and_the_next_run_works(fusion: Session) -> None:
    inputs: dict[str, Tensor | Array] = {
        "trunk_states": np.ones((3, 4, 6), np.float32),  # neither 1 nor the batch
        "question_states": np.ones((2, 5, 8), np.float32),
        "attention_mask": np.ones((2, 5), np.int64),
    }
    with pytest.raises(EdgeVQAError, match=r"Graph 'vision_fusion' failed in (ONNX Runtime|OpenVINO): \S") as caught:
        fusion.run(inputs)
    assert "\n" not in str(caught.value)
    inputs["trunk_states"] = np.ones((2, 4, 6), np.float32)
    assert fusion.run(inputs)["image_states"].shape == (2, 4, 6)


def test_a_closed_session_says_so(trunk: Session) -> None:
    trunk.close()
    trunk.close()
    with pytest.raises(EdgeVQAError, match="was closed"):
        trunk.run(TRUNK)


def other_bundle(bundle: Bundle, path: Path, **graph: object) -> Bundle:
    """The toy bundle with another entry of `vision_trunk`; `file` may be given as bytes."""
    with BundleWriter(path) as writer:
        spec = bundle.graph("fp32", "vision_trunk")
        data = graph.pop("file", None)
        content = data if isinstance(data, bytes) else bundle.graph_path("fp32", "vision_trunk").read_bytes()
        spec = msgspec.structs.replace(spec, file=writer.add_bytes(content, "graphs/fp32/vision_trunk.onnx"), **graph)
        variant = msgspec.structs.replace(bundle.variant("fp32"), graphs={"vision_trunk": spec})
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants={"fp32": variant}, text=None))


def test_a_file_that_is_no_graph(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    broken = other_bundle(bundle, tmp_path / "broken", file=b"these bytes are no graph")
    with pytest.raises(BundleError, match=r"cannot load .*vision_trunk\.onnx"):
        open_session(broken, "fp32", "vision_trunk", backend=backend)


def test_a_graph_that_is_not_the_manifests(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    other = other_bundle(bundle, tmp_path / "other", file=bundle.graph_path("fp32", "projector").read_bytes())
    with pytest.raises(BundleError, match="other inputs than the manifest says: image_states, pixel_values"):
        open_session(other, "fp32", "vision_trunk", backend=backend)


def test_an_input_of_another_dtype_than_the_manifests(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    inputs = [msgspec.structs.replace(bundle.graph("fp32", "vision_trunk").inputs[0], dtype="float16")]
    other = other_bundle(bundle, tmp_path / "other", inputs=inputs)
    with pytest.raises(BundleError, match="pixel_values"):
        open_session(other, "fp32", "vision_trunk", backend=backend)


def test_node_times_leave_out_what_was_forgotten(bundle: Bundle, backend: str) -> None:
    options = SessionOptions(threads=1, profile=True)
    with open_session(bundle, "fp32", "vision_trunk", backend=backend, options=options) as session:
        assert isinstance(session, ProfiledSession)
        for _ in range(3):
            session.run(TRUNK)
        session.forget_times()
        for _ in range(2):
            session.run(TRUNK)
        rows = session.node_times()
    products = [row for row in rows if row.products]
    assert products
    assert {row.runs for row in products} == {2}
    assert all(row.run_ms >= 0 and row.nodes for row in rows)
    assert sum(row.run_ms for row in rows) > 0


def test_a_plain_session_times_nothing(trunk: Session) -> None:
    assert not isinstance(trunk, ProfiledSession)
