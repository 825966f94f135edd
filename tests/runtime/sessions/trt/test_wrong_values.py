"""What a session must never hand to TensorRT: the simulator refuses it, where the GPU would compute on wrong bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgevqa.runtime.errors import BundleError, EdgeVQAError
from edgevqa.runtime.sessions.base import Array, Session
from edgevqa.runtime.sessions.trt.tensors import DeviceTensor
from tests.simulators import engine_files
from tests.simulators.bench import H2D, Bench, plan_of
from tests.simulators.cuda_parts import cudaMemcpyKind
from tests.simulators.writes import SimulatorError

D2D = cudaMemcpyKind.cudaMemcpyDeviceToDevice
AXES = {"positions": (5, 8, 16)}
ONES = np.ones((2, 3, 8, 8), dtype=np.float32)
Open = Callable[..., Session]


def test_numbers_of_a_larger_dtype(bench: Bench) -> None:
    """float64 where float32 is read: there are bytes enough, and all are wrong."""
    bench.context(x=bench.uploaded([1] * 8), y=bench.malloc()).execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match="'x' reads 16 bytes where 32 were written at once"):
        bench.sync()


def test_numbers_of_a_smaller_dtype_over_old_ones(bench: Bench) -> None:
    """The bytes beyond were written once, for another tensor."""
    x = bench.uploaded([1] * 4)
    bench.cuda.cudaMemcpyAsync(x, bench.pinned([2, 2])[0], 8, H2D, bench.stream)
    bench.context(x=x, y=bench.malloc()).execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match=r"'x' reads 16 bytes where (8|16) were written at once"):
        bench.sync()


@pytest.mark.parametrize("way", ["as it is", "copied", "in rows"])
def test_an_engines_output_of_another_dtype(bench: Bench, way: str) -> None:
    """int32 where float32 is read: as many bytes, and all are wrong."""
    plan = plan_of(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32), "x", TensorProto.INT32)
    first, made = bench.load(plan), bench.malloc()
    bench.engine, doubling = first, bench.engine
    bench.context(x=bench.uploaded([1, 2, 3, 4]), y=made).execute_async_v3(bench.stream)
    x = made if way == "as it is" else bench.malloc()
    if way == "copied":
        bench.cuda.cudaMemcpyAsync(x, made, 16, D2D, bench.stream)
    if way == "in rows":
        bench.cuda.cudaMemcpy2DAsync(x, 8, made, 8, 8, 2, D2D, bench.stream)
    bench.engine = doubling
    bench.context(x=x, y=bench.malloc()).execute_async_v3(bench.stream)
    with pytest.raises(SimulatorError, match="'x' reads float32 where int32 was written"):
        bench.sync()


def test_a_part_of_an_engines_output(bench: Bench) -> None:
    y = bench.malloc(32)
    bench.context(2, x=bench.uploaded([1] * 8), y=y).execute_async_v3(bench.stream)
    bench.cuda.cudaMemcpyAsync(bench.malloc(), y, 16, D2D, bench.stream)
    with pytest.raises(SimulatorError, match=r"a copy from .* reads 16 bytes where 32 were written"):
        bench.sync()


@pytest.mark.parametrize("shape", [(0, 4), (4, 4), (1, 3), (1, 5), (4,), (1, 4, 1), ()])
def test_every_axis_of_a_shape_is_held_against_the_profile(bench: Bench, shape: tuple[int, ...]) -> None:
    assert not bench.context().set_input_shape("x", shape)
    assert f"the shape {shape} of 'x' is not within [1, 4] and [3, 4]" in bench.log.lines[-1]


def test_an_axis_with_two_sizes(bench: Bench) -> None:
    bench.engine = bench.load(plan_of(helper.make_node("Add", ["x", "z"], ["y"]), "xz"))
    context = bench.context(2)
    context.set_input_shape("z", (1, 4))
    with pytest.raises(RuntimeError, match="infer_shapes error code: -1"):
        context.infer_shapes()
    assert bench.log.lines[-1] == "dimensions of one name differ: batch"


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that forgot to look at what it is given."""
    monkeypatch.setattr("edgevqa.runtime.sessions.trt.session.check_inputs", lambda *given: None)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "uint32", "uint8"])
@pytest.mark.parametrize("integrated", [False, True])
def test_arrays_of_a_wrong_dtype(
    monkeypatch: pytest.MonkeyPatch, simulated: Any, open_graph: Open, dtype: str, *, integrated: bool
) -> None:
    """Launched first, then captured; where CPU and GPU share memory, read there."""
    unchecked(monkeypatch)
    simulated.start(integrated=integrated)
    session = open_graph()
    session.run({"pixel_values": ONES})["trunk_states"].numpy()
    for _ in range(3):
        with pytest.raises(SimulatorError, match=r"wrong dtype|reads float32 where|too small"):
            session.run({"pixel_values": ONES.astype(dtype)})["trunk_states"].numpy()


@pytest.mark.parametrize("dtype", ["int32", "float64", "uint64"])
def test_what_tensorrt_reads_on_the_host_of_a_wrong_dtype(
    monkeypatch: pytest.MonkeyPatch, engines: Callable[..., Path], toy_bundle: Path, open_graph: Open, dtype: str
) -> None:
    unchecked(monkeypatch)
    path = engines(toy_bundle, axes=AXES, traits={"vision_fusion": {"on_host": ["attention_mask"]}})
    inputs: dict[str, Array] = {
        "trunk_states": np.ones((1, 4, 6), np.float32),
        "question_states": np.ones((2, 3, 8), np.float32),
        "attention_mask": np.ones((2, 3), dtype),
    }
    with pytest.raises(SimulatorError, match=r"wrong dtype|reads int64 where"):
        open_graph("vision_fusion", at=path).run(dict(inputs))


def test_a_tensor_of_a_wrong_dtype(monkeypatch: pytest.MonkeyPatch, open_graph: Open) -> None:
    """Another graph's output, taken for one of another dtype: as many bytes, and fewer."""
    unchecked(monkeypatch)
    trunk, projector = open_graph(), open_graph("projector")
    states = trunk.run({"pixel_values": ONES})["trunk_states"]
    assert isinstance(states, DeviceTensor)
    half = DeviceTensor(states.buffer, (1, *states.shape[1:]), "float32")
    with pytest.raises(SimulatorError, match="were written at once"):
        projector.run({"image_states": half})["image_embeds"].numpy()


def test_an_axis_of_two_sizes_is_refused_by_tensorrt_itself(monkeypatch: pytest.MonkeyPatch, open_graph: Open) -> None:
    """A session that looked at ranks alone."""
    unchecked(monkeypatch)
    inputs: dict[str, Array] = {
        "trunk_states": np.ones((1, 4, 6), np.float32),
        "question_states": np.ones((2, 3, 8), np.float32),
        "attention_mask": np.ones((2, 4), np.int64),
    }
    with pytest.raises(EdgeVQAError, match="dimensions of one name differ: words"):
        open_graph("vision_fusion").run(dict(inputs))


def other_engine(dtype: int, name: str = "pixel_values") -> bytes:
    """An engine whose tensors are not those of the toy's trunk."""
    takes = helper.make_tensor_value_info(name, dtype, ["image", 3, 8, 8])
    gives = helper.make_tensor_value_info("trunk_states", dtype, ["image", 3, 8, 8])
    node = helper.make_node("Identity", [name], ["trunk_states"])
    graph = helper.make_graph([node], "other", [takes], [gives])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (other_engine(TensorProto.FLOAT16), "inputs than the manifest says: pixel_values"),
        (other_engine(TensorProto.FLOAT, "pixels"), "inputs than the manifest says: pixel_values, pixels"),
    ],
)
def test_an_engine_with_other_tensors_than_the_manifest_says(
    monkeypatch: pytest.MonkeyPatch,
    engines: Callable[..., Path],
    toy_bundle: Path,
    open_graph: Open,
    data: bytes,
    wrong: str,
) -> None:
    """Record and hashes agree, as they do with a build that went wrong: only the engine itself can tell."""
    own = engine_files.whole_graph
    monkeypatch.setattr(
        engine_files, "whole_graph", lambda path: data if path.name.startswith("vision_trunk") else own(path)
    )
    with pytest.raises(BundleError, match=f"{wrong}. Build the engine again"):
        open_graph(at=engines(toy_bundle, axes=AXES))


@pytest.mark.parametrize(("given", "asked"), [({}, "WHOLE_GRAPH_CAPTURE"), ({"cuda_graphs": "0"}, "DISABLED")])
def test_tensorrt_rtx_is_asked_to_capture_by_itself(
    simulated: Any,
    engines: Callable[..., Path],
    toy_bundle: Path,
    open_graph: Open,
    given: dict[str, str],
    asked: str,
) -> None:
    session = open_graph("vision_fusion", "tensorrt-rtx", engines(toy_bundle, "rtx", axes=AXES), **given)
    for words in (3, 3, 2):
        session.run(
            {
                "trunk_states": np.ones((1, 4, 6), np.float32),
                "question_states": np.ones((2, words, 8), np.float32),
                "attention_mask": np.ones((2, words), np.int64),
            }
        )
    made = list(simulated.modules["tensorrt_rtx"].contexts)
    assert [context.captures.name for context in made] == [asked]
    assert "cudaStreamBeginCapture" not in simulated.cuda.calls
