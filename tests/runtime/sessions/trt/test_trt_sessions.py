"""TensorRT sessions on the strict simulator: what every session promises, and what a GPU adds to it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, ConfigError, EdgeVQAError, InputError, UnavailableError
from edgevqa.runtime.sessions import BACKENDS, open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor
from edgevqa.runtime.sessions.trt.session import EngineSession
from edgevqa.runtime.sessions.trt.tensors import DeviceTensor

AXES = {"positions": (5, 8, 16)}
ONES = np.ones((2, 3, 8, 8), dtype=np.float32)
Open = Callable[..., Session]


def expected(path: Path, graph: str, inputs: dict[str, Tensor | Array]) -> dict[str, Array]:
    with open_session(Bundle.open(path), "fp32", graph, backend="onnxruntime") as session:
        return {name: tensor.numpy() for name, tensor in session.run(inputs).items()}


def fusion_inputs(batch: int, words: int, seed: int = 0) -> dict[str, Tensor | Array]:
    random = np.random.default_rng(seed)
    return {
        "trunk_states": random.normal(size=(1, 4, 6)).astype(np.float32),
        "question_states": random.normal(size=(batch, words, 8)).astype(np.float32),
        "attention_mask": np.ones((batch, words), np.int64),
    }


def run_often(session: Session, times: int) -> list[dict[str, Tensor]]:
    return [session.run({"pixel_values": ONES}) for _ in range(times)]


def test_a_graph_gives_what_onnx_runtime_gives(open_graph: Open, path: Path) -> None:
    found = open_graph("vision_fusion").run(fusion_inputs(3, 5))
    for name, value in expected(path, "vision_fusion", fusion_inputs(3, 5)).items():
        np.testing.assert_array_equal(found[name].numpy(), value)
        assert found[name].shape == value.shape


def test_outputs_stay_valid_after_the_next_run_and_after_close(open_graph: Open) -> None:
    session = open_graph()
    first = session.run({"pixel_values": ONES})["trunk_states"]
    kept = first.numpy()
    for scale in (5, -3, 2, 7):  # launched, captured, replayed
        assert not np.allclose(kept, session.run({"pixel_values": ONES * scale})["trunk_states"].numpy())
    last = session.run({"pixel_values": ONES * 3})["trunk_states"]
    session.close()
    gc.collect()
    np.testing.assert_array_equal(first.numpy(), kept)
    np.testing.assert_allclose(last.numpy(), kept * 3, rtol=1e-6)


def test_arrays_may_change_after_the_run(open_graph: Open) -> None:
    session, pixels = open_graph(), ONES.copy()
    states = session.run({"pixel_values": pixels})["trunk_states"]
    pixels[:] = 77
    np.testing.assert_array_equal(states.numpy(), session.run({"pixel_values": ONES})["trunk_states"].numpy())


def test_tensors_flow_from_graph_to_graph_without_the_host(open_graph: Open, path: Path) -> None:
    fusion, projector = open_graph("vision_fusion"), open_graph("projector")
    assert isinstance(projector, EngineSession)
    states = fusion.run(fusion_inputs(2, 3))["image_states"]
    before = projector.traffic.uploads, projector.traffic.downloads
    embeds = projector.run({"image_states": states})["image_embeds"]
    assert (projector.traffic.uploads, projector.traffic.downloads) == before
    whole = expected(path, "vision_fusion", fusion_inputs(2, 3))["image_states"]
    np.testing.assert_array_equal(embeds.numpy(), expected(path, "projector", {"image_states": whole})["image_embeds"])


def test_shapes_that_come_again_are_captured_and_replayed(open_graph: Open, path: Path, simulated: Any) -> None:
    session = open_graph("vision_fusion")
    for seed in range(4):
        for batch, words in ((1, 3), (2, 5)):
            found = session.run(fusion_inputs(batch, words, seed))["image_states"].numpy()
            want = expected(path, "vision_fusion", fusion_inputs(batch, words, seed))["image_states"]
            np.testing.assert_array_equal(found, want)
    assert isinstance(session, EngineSession)
    assert (session.traffic.launches, session.traffic.replays) == (4, 4)
    assert simulated.cuda.calls["cudaGraphLaunch"] == 4


def test_a_tensor_that_a_captured_launch_has_is_not_copied_again(open_graph: Open) -> None:
    trunk, fusion = open_graph(), open_graph("vision_fusion")
    assert isinstance(fusion, EngineSession)
    inputs = fusion_inputs(1, 3)
    inputs["trunk_states"] = trunk.run({"pixel_values": ONES[:1]})["trunk_states"]
    for _ in range(2):
        fusion.run(inputs)
    copies = fusion.traffic.device_copies
    fusion.run(inputs)
    assert fusion.traffic.device_copies == copies + 1, "the output alone is copied"
    inputs["trunk_states"] = trunk.run({"pixel_values": ONES[:1] * 2})["trunk_states"]
    copies = fusion.traffic.device_copies
    changed = fusion.run(inputs)["image_states"].numpy()
    assert fusion.traffic.device_copies == copies + 2
    assert not np.allclose(changed, fusion.run(fusion_inputs(1, 3))["image_states"].numpy())


def test_only_so_many_launches_are_kept(open_graph: Open, simulated: Any) -> None:
    session = open_graph("vision_fusion", graph_cache="2")
    for words in (1, 2, 3, 4):
        for _ in range(3):
            session.run(fusion_inputs(1, words))
    assert simulated.cuda.leaks().count("executable graph") == 2


def test_cuda_graphs_can_be_turned_off(open_graph: Open, simulated: Any) -> None:
    session = open_graph(cuda_graphs="0")
    for _ in range(4):
        session.run({"pixel_values": ONES})
    assert "cudaStreamBeginCapture" not in simulated.cuda.calls


def test_what_cannot_be_captured_is_launched(
    engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, path: Path, simulated: Any
) -> None:
    other = engines(toy_bundle, axes=AXES, traits={"vision_fusion": {"uncapturable": True}})
    session = open_graph("vision_fusion", at=other)
    for seed in range(5):
        found = session.run(fusion_inputs(2, 3, seed))["image_states"].numpy()
        np.testing.assert_array_equal(found, expected(path, "vision_fusion", fusion_inputs(2, 3, seed))["image_states"])
    assert simulated.cuda.calls["cudaStreamBeginCapture"] == 1


def test_outputs_whose_shape_depends_on_the_data(
    engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, path: Path
) -> None:
    other = engines(toy_bundle, axes=AXES, traits={"vision_fusion": {"data_dependent": ["image_states"]}})
    session = open_graph("vision_fusion", at=other)
    found = [session.run(fusion_inputs(2, 3, seed))["image_states"] for seed in range(4)]
    for seed, tensor in enumerate(found):
        want = expected(path, "vision_fusion", fusion_inputs(2, 3, seed))["image_states"]
        np.testing.assert_array_equal(tensor.numpy(), want)


def test_inputs_that_tensorrt_reads_on_the_host(
    engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, path: Path
) -> None:
    other = engines(toy_bundle, axes=AXES, traits={"vision_fusion": {"on_host": ["attention_mask"]}})
    session = open_graph("vision_fusion", at=other)
    for seed in range(3):
        inputs = fusion_inputs(2, 3, seed)
        np.asarray(inputs["attention_mask"])[1, 2:] = 0
        want = expected(path, "vision_fusion", inputs)["image_states"]
        np.testing.assert_array_equal(session.run(inputs)["image_states"].numpy(), want)


def test_where_cpu_and_gpu_share_memory_inputs_are_read_there(simulated: Any, path: Path) -> None:
    simulated.start(integrated=True)
    with open_session(Bundle.open(path), "fp32", "vision_fusion", backend="tensorrt") as session:
        assert isinstance(session, EngineSession)
        found = [session.run(fusion_inputs(2, words))["image_states"].numpy() for words in (1, 2, 3)]
        assert session.traffic.uploads == 0
        for words, value in enumerate(found, 1):
            want = expected(path, "vision_fusion", fusion_inputs(2, words))["image_states"]
            np.testing.assert_array_equal(value, want)
        del session
    assert simulated.cuda.calls["cudaHostGetDevicePointer"] > 0


@pytest.mark.parametrize("on_host", [[], ["question_states", "attention_mask"]])
def test_inputs_on_the_host_stay_until_their_launch(
    monkeypatch: pytest.MonkeyPatch,
    simulated: Any,
    engines: Callable[..., Path],
    toy_bundle: Path,
    open_graph: Open,
    on_host: list[str],
) -> None:
    """Also when there is so much on its way that the GPU is waited for between one input and the next."""
    monkeypatch.setattr("edgevqa.runtime.sessions.trt.device.STAGED_BYTES", 0)
    simulated.start(integrated=True)
    path = engines(toy_bundle, axes=AXES, traits={"vision_fusion": {"on_host": on_host}})
    session = open_graph("vision_fusion", at=path)
    for words in (3, 3, 2):
        want = expected(path, "vision_fusion", fusion_inputs(2, words))["image_states"]
        np.testing.assert_array_equal(session.run(fusion_inputs(2, words))["image_states"].numpy(), want)
    assert sum(len(memory.data) for memory in simulated.cuda.host.values()) < 4000, "they are used again"


def test_without_memory_pools(simulated: Any, path: Path) -> None:
    simulated.start(pools=False)
    with open_session(Bundle.open(path), "fp32", "vision_trunk", backend="tensorrt") as session:
        for scale in range(4):
            found = session.run({"pixel_values": ONES * scale})["trunk_states"].numpy()
            np.testing.assert_array_equal(
                found, expected(path, "vision_trunk", {"pixel_values": ONES * scale})["trunk_states"]
            )
    assert simulated.cuda.calls["cudaMalloc"] > 0
    assert "cudaMallocAsync" not in simulated.cuda.calls, "there are no pools to take from"


def test_memory_is_used_again(open_graph: Open, simulated: Any) -> None:
    session = open_graph(cuda_graphs="0")
    for _ in range(3):
        session.run({"pixel_values": ONES})["trunk_states"].numpy()
    before = simulated.cuda.calls["cudaMallocAsync"], simulated.cuda.calls["cudaHostAlloc"]
    for _ in range(10):
        session.run({"pixel_values": ONES})["trunk_states"].numpy()
    assert (simulated.cuda.calls["cudaMallocAsync"], simulated.cuda.calls["cudaHostAlloc"]) == before


def test_when_memory_is_short_what_is_kept_is_given_back(open_graph: Open, simulated: Any) -> None:
    session = open_graph(cuda_graphs="0")
    held = [session.run({"pixel_values": ONES})["trunk_states"] for _ in range(8)]
    del held
    simulated.cuda.least_bytes_free = simulated.cuda.bytes_in_use() + 100
    session.run({"pixel_values": np.ones((4, 3, 8, 8), np.float32)})["trunk_states"].numpy()
    simulated.cuda.least_bytes_free = simulated.cuda.bytes_in_use()
    with pytest.raises(EdgeVQAError, match="cudaErrorMemoryAllocation"):
        run_often(session, 50)
    simulated.cuda.least_bytes_free = None
    assert session.run({"pixel_values": ONES})["trunk_states"].numpy().shape == (2, 4, 6)


def test_every_output_is_the_callers_own_also_when_replayed(open_graph: Open) -> None:
    session = open_graph()
    found = [session.run({"pixel_values": ONES * scale})["trunk_states"] for scale in (1, 2, 3, 4, 5)]
    one = found[0].numpy()
    for scale, tensor in enumerate(found, 1):
        np.testing.assert_allclose(tensor.numpy(), one * scale, rtol=1e-5)


def test_rows_are_repeated_on_the_gpu(open_graph: Open) -> None:
    session = open_graph()
    states = session.run({"pixel_values": np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)})
    tensor = states["trunk_states"]
    assert isinstance(tensor, DeviceTensor)
    np.testing.assert_array_equal(tensor.repeat_rows(3).numpy(), np.repeat(tensor.numpy(), 3, axis=0))


def test_shapes_beyond_the_engine_are_refused_with_the_build(open_graph: Open) -> None:
    with pytest.raises(InputError, match=r"'vision_trunk' takes image of 1 or 1 to 4 .*got 5.*--batch 1,5"):
        open_graph().run({"pixel_values": np.ones((5, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((2, 3, 8, 8)), "expects pixel_values float32 .*got float64"),
        (np.ones((2, 3, 8, 9), np.float32), r"got shape \(2, 3, 8, 9\)"),
        (np.array([None]), "got object"),
    ],
)
def test_wrong_arrays_are_refused_by_name(open_graph: Open, array: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_graph().run({"pixel_values": array})


def test_arrays_of_any_layout_and_byte_order_give_the_same(open_graph: Open) -> None:
    session = open_graph()
    pixels = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)
    want = session.run({"pixel_values": pixels})["trunk_states"].numpy()
    for same in (np.asfortranarray(pixels), pixels[..., ::-1][..., ::-1], pixels.astype(">f4")):
        np.testing.assert_array_equal(session.run({"pixel_values": same})["trunk_states"].numpy(), want)


def test_a_closed_session_says_so(open_graph: Open) -> None:
    session = open_graph()
    session.close()
    session.close()
    with pytest.raises(EdgeVQAError, match="was closed"):
        session.run({"pixel_values": ONES})


def test_a_session_that_is_forgotten_releases_everything(simulated: Any, path: Path) -> None:
    session: Session | None = open_session(Bundle.open(path), "fp32", "vision_trunk", backend="tensorrt")
    assert session is not None
    session.run({"pixel_values": ONES})
    assert simulated.cuda.leaks()
    session = None
    assert simulated.left() == []


def test_a_failure_of_the_driver_is_told_and_nothing_is_left(open_graph: Open, simulated: Any) -> None:
    session = open_graph()
    simulated.cuda.fail_next("cudaMemcpyAsync", "cudaErrorIllegalAddress")
    with pytest.raises(EdgeVQAError, match="cudaErrorIllegalAddress"):
        session.run({"pixel_values": ONES})
    simulated.cuda.fail_next("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated")
    found = [session.run({"pixel_values": ONES})["trunk_states"].numpy() for _ in range(3)]
    np.testing.assert_array_equal(found[0], found[1])
    assert simulated.cuda.calls["cudaStreamBeginCapture"] == 1


def test_profiling_is_refused(simulated: Any, path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot time their layers"):
        open_session(Bundle.open(path), "fp32", "projector", backend="tensorrt", options=SessionOptions(profile=True))


def test_without_a_gpu_it_is_unavailable_and_nothing_is_left(simulated: Any, path: Path) -> None:
    simulated.cuda.fail_next("cudaSetDevice", "cudaErrorNoDevice")
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        open_session(Bundle.open(path), "fp32", "projector", backend="tensorrt")


def test_an_engine_that_tensorrt_refuses_is_told_with_its_reason(
    engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, simulated: Any
) -> None:
    simulated.install("tensorrt", (10, 4, 0, 1))
    other = engines(toy_bundle, axes=AXES, record={"version_compatible": True, "tensorrt_version": (10, 3, 0, 30)})
    with pytest.raises(BundleError, match=r"they carry their runtime, which is a program.*allow_engine_code=1"):
        open_graph(at=other)
    session = open_graph(at=other, allow_engine_code="1")
    assert session.run({"pixel_values": ONES})["trunk_states"].shape == (2, 4, 6)
    library = other / "libnvinfer_lean.so"
    library.touch()
    assert open_graph(at=other, runtime_library=str(library)).run({"pixel_values": ONES})


def test_what_tensorrts_python_raises_is_told_with_its_reason(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, open_graph: Open
) -> None:
    """Where its C++ returns false, or a negative number."""
    session: Any = open_graph()
    session._loaded._engine.handle.profiles.clear()
    with pytest.raises(EdgeVQAError, match="made no context for graph 'vision_trunk': there is no profile 1"):
        session.run({"pixel_values": ONES})
    shapeless = engines(toy_bundle, axes=AXES, traits={"vision_trunk": {"shapeless": True}})
    with pytest.raises(EdgeVQAError, match="found no shapes for its outputs: an output would have a negative dim"):
        open_graph(at=shapeless).run({"pixel_values": ONES})


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_tensorrt_that_cannot_start_is_unavailable(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, name: str
) -> None:
    """Where there is no runtime its Python raises a TypeError; its log has the reason."""
    module, backend = simulated.modules[name], name.replace("_", "-")

    def refuse(logger: Any) -> None:
        logger.log(module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Runtime = refuse
    path = engines(toy_bundle, "server-trt10", "rtx", axes=AXES)
    with pytest.raises(UnavailableError, match="cannot run here: CUDA initialization failure with error: 35"):
        open_graph(at=path, backend=backend)


def test_every_backend_of_the_table_opens_here(simulated: Any) -> None:
    assert BACKENDS["tensorrt"].installed()
    assert BACKENDS["tensorrt-rtx"].installed()
    simulated.remove("tensorrt")
    assert not BACKENDS["tensorrt"].installed()
    simulated.install("tensorrt_lean")
    assert BACKENDS["tensorrt"].installed()
