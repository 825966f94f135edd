"""Embedding tables and the vocabulary head stored as FP16 inside float32 graphs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgevqa.calibration.casting.tables import store_tables

ROWS, WIDTH = 300, 64
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(ROWS, WIDTH)).astype(np.float32)
HEAD = RANDOM.normal(size=(WIDTH, ROWS)).astype(np.float32) / 8


def build(body: str, outputs: str = "float[b, 300] logits", **constants: np.ndarray) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["":20]> g (int64[b] ids) => ({outputs}) {{{body}}}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def run(model: ir.Model, ids: np.ndarray) -> Any:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})[0]


TIED = "r = Gather(table, ids)  h = Relu(r)  logits = MatMul(h, head)"


def test_table_and_head_are_halved_and_give_the_rounded_result_exactly() -> None:
    ids = np.arange(20)
    model = build(TIED, table=TABLE, head=HEAD)
    assert store_tables(model).stored == ("table", "head")
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name: tensor.dtype for name, tensor in stored.items() if tensor} == dict.fromkeys(
        ("table", "head"), ir.DataType.FLOAT16
    )
    table, head = (array.astype(np.float16).astype(np.float32) for array in (TABLE, HEAD))
    reference = build(TIED, table=table, head=head)
    np.testing.assert_array_equal(run(model, ids), run(reference, ids))
    assert not np.array_equal(run(model, ids), run(build(TIED, table=TABLE, head=HEAD), ids))


def test_values_keep_their_names_and_only_the_rows_looked_up_are_cast() -> None:
    model = build(TIED, table=TABLE, head=HEAD)
    store_tables(model)
    by_name = {output.name: node.op_type for node in model.graph for output in node.outputs}
    assert by_name["r"] == "Cast"
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[0] is model.graph.initializers["table"]
    assert gather.outputs[0].dtype == ir.DataType.FLOAT16


def test_a_looked_up_row_may_be_the_graphs_output() -> None:
    model = build("y = Gather(table, ids)", outputs="float[b, 64] y", table=TABLE)
    assert store_tables(model).stored == ("table",)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(run(model, np.array([3])), TABLE[[3]].astype(np.float16).astype(np.float32))


def test_a_table_that_is_multiplied_too_is_stored_once() -> None:
    body = "r = Gather(table, ids)  t = Transpose<perm=[1, 0]>(table)  logits = MatMul(r, t)"
    model = build(body, table=TABLE)
    assert store_tables(model).stored == ("table",)
    assert list(model.graph.initializers) == ["table"]
    ids = np.arange(5)
    rounded = TABLE.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(run(model, ids), rounded[ids] @ rounded.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("factor", "rows", "refused"), [(1e5, ROWS, True), (1e-8, ROWS, True), (1.0, 20, False)])
def test_tables_that_fp16_cannot_hold_or_that_are_small_stay(factor: float, rows: int, refused: bool) -> None:
    model = build("y = Gather(table, ids)", outputs="float[b, 64] y", table=TABLE[:rows] * np.float32(factor))
    report = store_tables(model)
    assert report.stored == ()
    assert report.refused == (("table",) if refused else ())
    assert model.graph.initializers["table"].dtype == ir.DataType.FLOAT


def test_other_weights_are_left_alone() -> None:
    model = build("r = Gather(table, ids)  h = MatMul(r, w)  logits = Relu(h)", table=TABLE, w=HEAD)
    assert store_tables(model).stored == ("table",)
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_the_reference_model_answers_with_tables_of_half_the_size(reference_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(reference_bundle / "graphs" / "fp32", tmp_path / "g")
    ids = np.array([[5, 9, 11, 2]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    path = tmp_path / "g" / "question_encoder.onnx"
    exact = np.asarray(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0])
    model = ir.load(path)
    assert len(store_tables(model).stored) == 1
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    found = np.asarray(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0])
    assert 0 < np.abs(found - exact).max() < 2.0**-9 * np.abs(exact).max()
    decoder = ir.load(tmp_path / "g" / "language_decoder.onnx")
    assert len(store_tables(decoder).stored) == 2  # the table, and the head in its own layout
