"""Casting small graphs to FP16 and BF16: what stays FP32, where casts go, and that nothing overflows unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgevqa.calibration.casting.boundaries import plan_boundaries
from edgevqa.calibration.casting.cast import CastReport, cast_graph
from edgevqa.calibration.casting.emulate import emulate_rounding
from edgevqa.calibration.casting.plan import CastOptions
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.targets import target

HALF = ir.DataType.FLOAT16
FLOAT = ir.DataType.FLOAT
WEIGHT = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) / 3
LOW = {"x": "float16", "y": "float16"}


def build(body: str, *, outputs: str = "float[b, 8] y", opset: int = 20, **constants: Any) -> ir.Model:
    """A graph of x (b, 8) and ids (b); `constants` become initializers, plain numbers float32 scalars."""
    text = f"<ir_version: 10, opset_import: ['':{opset}]> g (float[b, 8] x, int64[b] ids) => ({outputs}) {{{body}}}"
    proto = onnx.parser.parse_model(text.replace("'", '"'))
    for name, value in constants.items():
        array = np.asarray(value, dtype=np.float32) if isinstance(value, float) else np.asarray(value)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    for number, node in enumerate(proto.graph.node):
        node.name = node.output[0] or f"node{number}"
    return ir.serde.deserialize_model(proto)


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model as a file would hold it, valid and with the types that ONNX infers."""
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True, check_type=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    written = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    assert {name: written[name] for name in types} == types
    return proto


def run(model: ir.Model, x: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    """The first output for x and ids, each cast to what the graph takes, with the rounding of its types."""
    emulated = ir.serde.deserialize_model(checked(model))
    emulate_rounding(emulated)
    session = ort.InferenceSession(checked(emulated).SerializeToString(), providers=["CPUExecutionProvider"])
    given: dict[str, np.ndarray] = {"x": x, "ids": np.zeros(len(x), np.int64) if ids is None else ids}
    dtypes = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}
    inputs = {spec.name: given[spec.name].astype(dtypes[spec.type]) for spec in session.get_inputs()}
    return np.asarray(session.run(None, inputs)[0])


def cast(model: ir.Model, absmax: dict[str, float], **options: Any) -> CastReport:
    return cast_graph(model, absmax, CastOptions(boundaries=options.pop("boundaries", LOW), **options))


def kept(report: CastReport) -> dict[str, str]:
    return {node.node: node.reason for node in report.kept}


def type_of(model: ir.Model, name: str) -> ir.DataType | None:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return next(value.dtype for value in values if value.name == name)


def casts(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Cast"]


LINEAR = "h = MatMul(x, w)  a = Relu(h)  y = Add(a, x)"
SEEN = {"x": 3.0, "h": 5.0, "a": 5.0, "y": 8.0}


def test_a_graph_within_reach_is_cast_whole_and_stores_half_the_bytes() -> None:
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    exact = run(build(LINEAR, w=WEIGHT), x)
    model = build(LINEAR, w=WEIGHT)
    report = cast(model, SEEN)
    assert report.kept == ()
    assert report.casts == 0
    assert report.limit == 65504 / 8
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    assert weight.nbytes == WEIGHT.nbytes // 2
    found = run(model, x)
    assert found.dtype == np.float16
    assert 0 < np.abs(found - exact).max() < 8 * 2.0**-11 * np.abs(exact).max()


def test_what_calibration_saw_beyond_the_limit_stays_and_is_listed_with_its_value() -> None:
    model = build(LINEAR, w=WEIGHT)
    report = cast(model, {**SEEN, "h": 66_246.0, "a": 66_246.0, "y": 66_250.0}, boundaries={"x": "float16"})
    assert [(n.node, n.operator, n.reason, n.tensor, n.absmax) for n in report.kept] == [
        ("h", "MatMul", "overflow", "h", 66_246.0),
        ("a", "Relu", "overflow", "h", 66_246.0),
        ("y", "Add", "overflow", "y", 66_250.0),
    ]
    assert type_of(model, "w") == FLOAT
    assert report.casts == 1  # of x, which two nodes read


@pytest.mark.parametrize(("seen", "stays"), [(8_187.0, False), (8_189.0, True)])
def test_the_margin_decides(seen: float, stays: bool) -> None:
    """65504 / 8 = 8188."""
    model = build("y = MatMul(x, w)", w=WEIGHT)
    report = cast(model, {"x": 1.0, "y": seen}, boundaries={"x": "float16"})
    assert (kept(report) == {"y": "overflow"}) is stays


def test_a_tensor_that_nobody_observed_stays() -> None:
    model = build(LINEAR, w=WEIGHT)
    report = cast(model, {"x": 3.0, "y": 8.0}, boundaries={"x": "float16"})
    assert kept(report) == {"h": "unobserved", "a": "unobserved", "y": "unobserved"}


def test_planted_overflow_is_infinite_without_the_check_and_right_with_it() -> None:
    """As T5's `wo`: the sum is beyond FP16, the RMS normalisation behind it brings it back."""
    body = (
        "h = MatMul(x, w)  s = Add(h, x)  q = Pow(s, two)  m = ReduceMean<keepdims=1>(q, axis)"
        "  e = Add(m, eps)  r = Sqrt(e)  d = Div(s, r)  n = Mul(d, g)  y = MatMul(n, v)"
    )
    constants: dict[str, Any] = {"two": 2.0, "axis": np.array([-1]), "eps": 1e-6, "g": np.ones(8, np.float32)}
    constants |= {"w": WEIGHT * 60_000, "v": WEIGHT[::-1].copy()}
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    exact = run(build(body, **constants), x)
    every = [("x", x), ("h", x @ constants["w"]), ("s", x @ constants["w"] + x), ("n", np.array(3.0)), ("y", exact)]
    seen = {name: float(np.abs(value).max()) for name, value in every}
    seen |= {"q": seen["s"] ** 2, "m": seen["s"] ** 2, "e": seen["s"] ** 2, "r": seen["s"], "d": 3.0}
    assert seen["h"] > 65_504
    naive = build(body, **constants)
    cast(naive, seen, margin=None)
    assert not np.isfinite(run(naive, x)).all()
    model = build(body, **constants)
    report = cast(model, seen)
    assert kept(report) == {"h": "overflow", "s": "overflow"} | dict.fromkeys("qmerdn", "rms_norm")
    assert type_of(model, "v") == HALF
    np.testing.assert_allclose(run(model, x), exact, atol=4 * 2.0**-11 * np.abs(exact).max())


def test_a_layer_norm_stays_one_operator() -> None:
    model = build("y = LayerNormalization<epsilon=1e-6>(x, g, b)", g=np.ones(8, np.float32), b=WEIGHT[0])
    report = cast(model, {"x": 1_400.0, "y": 9.0})
    assert report.kept == ()
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]
    assert type_of(model, "g") == HALF
    checked(model)


def test_the_mask_that_calibration_never_needed_stays_finite() -> None:
    """Without padding the mask is 0 throughout; its -30000 follows from the graph. -1e9 would be infinite in FP16."""
    body = (
        "f = Cast<to=1>(ids)  i = Sub(one, f)  m = Mul(i, low)  u = Unsqueeze(m, axis)  s = Add(x, u)  y = Softmax(s)"
    )
    seen = {"x": 20.0, "f": 1.0, "i": 0.0, "m": 0.0, "u": 0.0, "s": 20.0, "y": 1.0}
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    for low, reasons in ((-30_000.0, {}), (-1e9, {"m": "constant", "u": "overflow", "s": "overflow", "y": "overflow"})):
        model = build(body, one=1.0, low=low, axis=np.array([1]))
        assert kept(cast(model, seen)) == reasons
        found = run(model, x, np.array([1, 0, 1]))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=2.0**-9)
        assert len(casts(model)) == len({(node.inputs[0], node.attributes["to"].value) for node in casts(model)})


def test_casts_are_made_once_a_tensor_and_never_one_after_another() -> None:
    body = (
        "f = Cast<to=1>(ids)  u = Unsqueeze(f, axis)  h = Add(x, u)"
        "  p = Pow(h, two)  q = Exp(h)  r = Add(p, q)  y = Add(r, u)"
    )
    model = build(body, axis=np.array([1]), two=2.0)
    report = cast(model, dict.fromkeys("xfuhpqry", 5.0))
    assert kept(report) == {"p": "operator", "q": "operator"}
    assert report.casts == 3  # h for both, p and q for r
    for node in casts(model):
        assert node.inputs[0] is not None
        producer = node.inputs[0].producer()
        assert producer is None or producer.op_type != "Cast"
    x = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(
        run(model, x, np.array([1, 0])), run(build(body, axis=np.array([1]), two=2.0), x, np.array([1, 0])), rtol=2e-3
    )


def test_index_arithmetic_in_floats_keeps_its_digits() -> None:
    """4,097 is no FP16 number: counting in FP16 would read the wrong row."""
    body = "f = Cast<to=1>(ids)  g = Add(f, one)  i = Cast<to=7>(g)  t = Gather(table, i)  y = Add(x, t)"
    table = np.repeat(np.arange(5_000, dtype=np.float32)[:, None], 8, axis=1) / 1_000
    model = build(body, one=1.0, table=table)
    report = cast(model, {"x": 1.0, "f": 4_096.0, "g": 4_097.0, "t": 5.0, "y": 6.0})
    assert kept(report) == {"f": "index", "g": "index"}
    found = run(model, np.zeros((1, 8), np.float32), np.array([4_096]))
    assert found[0, 0] == np.float16(4.097)
    assert type_of(model, "table") == HALF


def test_constants_that_fp16_cannot_hold_keep_their_node() -> None:
    model = build("h = Add(x, eps)  k = Mul(h, big)  y = MatMul(k, w)", eps=1e-6, big=WEIGHT[0] * 1e6, w=WEIGHT * 1e-7)
    report = cast(model, {"x": 1.0, "h": 1.0, "k": 1.0, "y": 1.0})
    assert kept(report) == {"h": "constant", "k": "constant", "y": "constant"}
    assert type_of(model, "w") == FLOAT


def test_a_weight_with_readers_of_both_types_is_stored_in_both_once_each() -> None:
    model = build("h = Mul(x, w)  p = Pow(x, w)  q = Add(h, p)  y = Add(q, w)", w=WEIGHT[0])
    cast(model, dict.fromkeys("xhpqy", 5.0))
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"w": FLOAT, "w.float16": HALF}
    checked(model)


def test_moving_values_between_fp32_nodes_rounds_nothing() -> None:
    model = build("p = Exp(x)  t = Transpose(p)  u = Transpose(t)  y = Exp(u)")
    report = cast(model, dict.fromkeys("xptuy", 2.0))
    assert kept(report) == {"p": "operator", "y": "operator"}
    assert report.casts == 2
    assert type_of(model, "t") == type_of(model, "u") == FLOAT
    checked(model)


QUANTISED = (
    "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
    "  e = DequantizeLinear<axis=1>(w, v, zw)  m = MatMul(d, e)  y = Add(m, b)"
)


def quantised_constants(scale: float = 1 / 32) -> dict[str, Any]:
    steps = np.random.default_rng(2).integers(-127, 128, size=(8, 8)).astype(np.int8)
    scales = np.full(8, 2.0**-8, np.float32)
    zeros = np.zeros(8, np.int8)
    return {"s": scale, "z": np.array(0, np.int8), "w": steps, "v": scales, "zw": zeros, "b": WEIGHT[0]}


def test_a_quantised_graph_keeps_its_integers_and_computes_in_fp16() -> None:
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    exact = run(build(QUANTISED, **quantised_constants()), x)
    model = build(QUANTISED, **quantised_constants())
    report = cast(model, {"x": 3.0, "m": 9.0, "y": 9.0})
    assert report.kept == ()
    assert report.casts == 0
    assert type_of(model, "w") == ir.DataType.INT8
    assert {type_of(model, name) for name in ("s", "v", "d", "e", "m", "y")} == {HALF}
    np.testing.assert_allclose(run(model, x), exact, atol=np.abs(exact).max() / 32)  # one step of x, at most


@pytest.mark.parametrize("cause", ["output", "scale"])
def test_a_quantised_linear_and_its_scales_have_one_type(cause: str) -> None:
    constants = quantised_constants()
    if cause == "scale":
        constants["v"][3] = 1e-7
    model = build(QUANTISED, **constants)
    high = 70_000.0 if cause == "output" else 9.0
    report = cast(model, {"x": 3.0, "m": high, "y": 9.0})
    expected = {"output": "overflow", "scale": "constant"}[cause]
    assert {name: reason for name, reason in kept(report).items() if name != "y"} == dict.fromkeys("qdem", expected)
    assert {type_of(model, name) for name in ("s", "v", "d", "e", "m")} == {FLOAT}
    checked(model)


def test_a_bias_put_in_after_calibration_is_no_reason_to_stay() -> None:
    model = build("h = MatMul(x, w)  y = Add(h, b)", w=WEIGHT, b=WEIGHT[0])
    assert cast(model, {"x": 3.0, "y": 9.0}).kept == ()


def test_scales_in_fp16_need_opset_19() -> None:
    model = build(QUANTISED, opset=17, **quantised_constants())
    with pytest.raises(ConfigError, match="opset 19"):
        cast(model, {})


def test_a_boundary_that_overflows_is_refused_by_name() -> None:
    model = build(LINEAR, w=WEIGHT)
    with pytest.raises(ConfigError, match=r"'y' cannot be float16: .*70000"):
        cast(model, {**SEEN, "y": 70_000.0})


def test_an_output_that_is_read_on_keeps_its_name_and_its_boundary() -> None:
    model = build("h = MatMul(x, w)  y = Relu(h)", outputs="float[b, 8] h, float[b, 8] y", w=WEIGHT)
    report = cast(model, SEEN, boundaries={"x": "float16", "y": "float16"})
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("h", FLOAT), ("y", HALF)]
    assert report.casts == 1
    checked(model)


def test_bf16_keeps_no_range_and_leaves_what_onnx_does_not_allow() -> None:
    model = build("h = MatMul(x, w)  y = Relu(h)", w=WEIGHT)
    report = cast(model, {"h": 1e30}, precision="bf16", boundaries={})
    assert report.kept == ()
    assert report.limit is None
    assert report.casts == 2  # numpy has no bfloat16: both ends are float32
    assert type_of(model, "w") == ir.DataType.BFLOAT16
    checked(model)
    conv = build(
        "a = Unsqueeze(x, axis)  c = Conv(a, k)  y = Squeeze(c, axis)",
        axis=np.array([1]),
        k=np.ones((1, 1, 1), np.float32),
    )
    assert kept(cast(conv, {}, precision="bf16", boundaries={})) == {"c": "operator"}
    checked(conv)


def test_bf16_rounds_to_eight_bits(tmp_path: Path, openvino: Any) -> None:
    """Against numpy: inputs and weights rounded to bfloat16, summed exactly, rounded again."""
    low = ir.DataType.BFLOAT16.numpy()
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    model = build("y = MatMul(x, w)", w=WEIGHT)
    cast(model, {}, precision="bf16", boundaries={})
    (tmp_path / "m.onnx").write_bytes(checked(model).SerializeToString())
    found = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU")({"x": x})[0]
    exact = x.astype(low).astype(np.float32) @ WEIGHT.astype(low).astype(np.float32)
    np.testing.assert_allclose(found, exact, atol=2.0**-8 * np.abs(exact).max())
    assert np.array_equal(found, found.astype(low).astype(np.float32))  # it was rounded
    assert np.abs(found - x @ WEIGHT).max() > 2.0**-12  # nor did it compute in float32


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="'int8'"):
        CastOptions(precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"margin of 0.5"):
        CastOptions(margin=0.5)


def test_boundaries_agree_between_graphs() -> None:
    first = build("h = MatMul(x, w)  logits = Relu(h)", outputs="float[b, 8] h, float[b, 8] logits", w=WEIGHT)
    second = build("y = Relu(x)")
    second.graph.inputs[0].name = "h"
    models = {"first": first, "second": second}
    seen = {"first": {"x": 2.0, "h": 9.0, "logits": 5.0}, "second": {"h": 9.0, "y": 5.0}}
    assert plan_boundaries(models, seen) == {"x": "float16", "h": "float16", "y": "float16", "logits": "float32"}
    seen["second"]["h"] = 9_000.0  # one graph saw more than the other
    assert plan_boundaries(models, seen)["h"] == "float32"
    assert plan_boundaries(models, seen, margin=4.0)["h"] == "float16"
    assert set(plan_boundaries(models, seen, precision="bf16").values()) == {"float32"}
    assert plan_boundaries(models, {})["h"] == "float32"


def test_what_the_runtime_copies_into_its_cache_has_the_cache_type() -> None:
    model = build("y = Relu(x)")
    model.graph.inputs[0].name, model.graph.outputs[0].name = "past_key.0", "new_key.0"
    seen = {"decoder": {"past_key.0": 9_000.0, "new_key.0": 3.0}}
    assert plan_boundaries({"decoder": model}, seen) == {"past_key.0": "float32", "new_key.0": "float32"}


def test_a_target_that_cannot_run_bf16_says_so() -> None:
    with pytest.raises(InputError, match=r"'cpu' cannot run bf16: ONNX Runtime.*openvino"):
        target("cpu").numerics_of("bf16")
    for name in ("openvino", "jetson-orin-jp6"):
        assert target(name).numerics_of("bf16") == ("bf16",)
