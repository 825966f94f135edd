"""What is ONNX Runtime's own: the trace that profiling leaves, and how outputs travel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import FileSpec, GraphSpec, TensorSpec
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, ProfiledSession, SessionOptions
from edgevqa.runtime.sessions.ort import HostTensor, host_array
from edgevqa.runtime.sessions.ort_profile import ProfiledOrtSession

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


def test_what_one_graph_gave_the_next_one_reads_where_it_lies(toy_bundle: Path) -> None:
    with open_session(Bundle.open(toy_bundle), "fp32", "vision_trunk", backend="onnxruntime") as session:
        found = session.run(TRUNK)["trunk_states"]
    assert isinstance(found, HostTensor)
    assert host_array(found) is found.array
    assert found.nbytes == found.array.nbytes > 0
    owned = found.numpy()
    owned += 1
    assert not np.shares_memory(owned, found.array)
    assert not np.array_equal(owned, found.array)


@pytest.mark.parametrize("give", [lambda array: array.T, lambda array: array.T.astype(">f4")])
def test_arrays_that_lie_otherwise_are_copied(give: Callable[[Array], Array]) -> None:
    given = give(np.arange(6, dtype=np.float32).reshape(2, 3))
    read = host_array(given)
    assert read.flags.c_contiguous
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, given)


def test_sums_and_norms_are_not_fused_into_a_slow_kernel(tmp_path: Path) -> None:
    """ONNX Runtime does fuse this graph by itself: else the test would show nothing."""
    axes: list[int | str] = ["batch", 3, 16]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["out"], axis=-1),
    ]
    weights = [numpy_helper.from_array(np.ones(16, np.float32), name) for name in ("scale", "bias")]
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("a", "b", "out")}
    graph = helper.make_graph(nodes, "norm", [tensors["a"], tensors["b"]], [tensors["out"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    path = tmp_path / "norm.onnx"
    path.write_bytes(model.SerializeToString())
    usual = onnxruntime.SessionOptions()
    usual.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # all but layouts
    usual.optimized_model_filepath = str(tmp_path / "usual.onnx")
    onnxruntime.InferenceSession(str(path), usual, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "usual.onnx").graph.node}
    assert kinds == {"SkipLayerNormalization"}
    file = FileSpec(path="norm.onnx", sha256="", size_bytes=0)
    sides = [TensorSpec(name=name, dtype="float32", shape=axes) for name in tensors]
    spec = GraphSpec(file=file, opset=19, ir_version=10, inputs=sides[:2], outputs=sides[2:], parameters=0, nodes={})
    session = ProfiledOrtSession(path, "norm", spec, SessionOptions())
    with session:
        session.run({name: np.ones((2, 3, 16), np.float32) for name in ("a", "b")})
        assert {time.kind for time in session.node_times()} == {"Add", "LayerNormalization"}


def test_profiling_leaves_no_file(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = SessionOptions(profile=True)
    for asked in (True, False):
        with open_session(
            Bundle.open(toy_bundle), "fp32", "vision_trunk", backend="onnxruntime", options=options
        ) as session:
            session.run(TRUNK)
            assert list(tmp_path.iterdir())
            if asked:
                assert isinstance(session, ProfiledSession)
                assert session.node_times()
        assert list(tmp_path.iterdir()) == []
