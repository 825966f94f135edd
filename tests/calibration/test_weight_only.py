"""Weights alone in 8 and 4 bits: what is stored, how well, and that backends read it as we do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.qdq import Placer
from edgevqa.calibration.quantization.quantizer import Quantizer
from edgevqa.calibration.quantization.recipe import Recipe, WeightBits
from edgevqa.calibration.quantization.weight_only import round_blocks, store_blocks
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import FileSpec
from edgevqa.runtime.sessions.base import Session, SessionOptions

DECODER = "language_decoder"
BITS: list[WeightBits] = ["int8", "int4"]


@pytest.mark.parametrize(("bits", "levels"), [("int8", 127), ("int4", 7)])
def test_blocks_are_rounded_to_a_step_of_their_own(bits: WeightBits, levels: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 5)).astype(np.float32)
    weight[:32] *= 100  # the second block of each column must not pay for the first
    stored, scales = store_blocks(weight, 32, bits)
    assert stored.shape == (64, 5)
    assert scales.shape == (2, 5)
    assert np.abs(stored.astype(np.float32)).max() <= levels
    steps = np.repeat(scales, 32, axis=0)
    rounded = round_blocks(weight, 32, bits)
    np.testing.assert_allclose(rounded, stored.astype(np.float32) * steps, rtol=1e-6)
    inside = np.abs(weight) <= levels * steps
    assert np.abs(rounded - weight)[inside].max() <= (steps * 0.5001)[inside].max()
    assert np.linalg.norm(rounded[32:] - weight[32:]) / np.linalg.norm(weight[32:]) < 1.2 / levels


def test_a_block_of_zeros_stays_zero() -> None:
    assert not round_blocks(np.zeros((32, 3), dtype=np.float32), 32, "int4").any()


@pytest.fixture(scope="module", params=BITS)
def decoder(
    request: pytest.FixtureRequest, calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WeightBits, Path, Quantizer]:
    """A decoder with quantised weights in a folder of its own."""
    bits: WeightBits = request.param
    recipe = Recipe(numerics="u8-fp32", method="max", weight_only={DECODER: bits}, tables="fp32")
    quantizer = Quantizer(calibrated, load_statistics(calibrated), recipe)
    path = tmp_path_factory.mktemp(bits) / f"{DECODER}.onnx"
    with SharedWeights(path.parent / "weights.data") as weights:
        quantizer.write_graph(weights, path, DECODER)
    return bits, path, quantizer


def test_weights_alone_are_quantised(decoder: tuple[WeightBits, Path, Quantizer]) -> None:
    bits, path, quantizer = decoder
    model = load_graph(path)
    assert model.opset_imports[""] == 21
    nodes = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert [node.op_type for node in nodes] == ["DequantizeLinear"] * 18
    kind = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4}[bits]
    for node in nodes:
        assert node.inputs[0] is not None
        assert node.inputs[0].dtype == kind
        assert node.attributes.get_int("block_size", 0) == 32
    methods = {row.method for row in quantizer.layers() if row.graph == DECODER and not row.head}
    assert methods == {f"weight-{bits}"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_computes_what_the_rounded_weights_give(
    decoder: tuple[WeightBits, Path, Quantizer], calibrated: Bundle, backend: str, tmp_path: Path
) -> None:
    """The reference is the float graph with the weights rounded by numpy."""
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    bits, path, _ = decoder
    model = load_graph(calibrated.graph_path("fp32", DECODER))
    for linear in find_linears(model.graph).values():
        if not linear.head:
            linear.weight.const_value = ir.Tensor(round_blocks(linear.matrix(), 32, bits), name=linear.weight.name)
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / "rounded.onnx")
    expected, got = logits(tmp_path / "rounded.onnx", "onnxruntime"), logits(path, backend)
    assert np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max()
    assert np.array_equal(got.argmax(axis=-1), expected.argmax(axis=-1))


def logits(path: Path, backend: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    with open_graph(path, backend) as session:
        sizes = {"batch": 3, "keys": 9, "capacity": 4}
        inputs = {}
        for spec in session.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
            if spec.dtype == "int64":
                inputs[spec.name] = rng.integers(3, 90, shape) if "ids" in spec.name else np.ones(shape, dtype=np.int64)
            else:
                inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        return np.array(session.run(inputs)["logits"].numpy())


def open_graph(path: Path, backend: str) -> Session:
    spec = graph_spec(load_graph(path), FileSpec(path=path.name, sha256="0" * 64, size_bytes=1))
    if backend == "openvino":
        from edgevqa.runtime.sessions.ov import OvSession

        return OvSession(path, DECODER, spec, SessionOptions(threads=1))
    from edgevqa.runtime.sessions.ort import OrtSession

    return OrtSession(path, DECODER, spec, SessionOptions(threads=1))


def test_four_bits_take_an_eighth(decoder: tuple[WeightBits, Path, Quantizer]) -> None:
    bits, path, _ = decoder
    for name, value in load_graph(path).graph.initializers.items():
        if name.endswith("wi_0.weight.quantized") and value.const_value is not None:
            assert value.const_value.nbytes == 128 * 256 // {"int8": 1, "int4": 2}[bits]


def test_a_transposed_weight_is_quantised_along_its_inputs(tmp_path: Path) -> None:
    """Gemm with transB holds (out, in): the blocks run along axis 1."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 32)).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 32]))
    w = ir.Value(
        name="layer.weight",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([6, 32]),
        const_value=ir.Tensor(weight, name="layer.weight"),
    )
    node = ir.node("Gemm", [x, w], {"transB": 1}, name="layer")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape([2, 6])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    placer = Placer(model)
    linear = find_linears(graph)["layer"]
    placer.quantise_weight(linear, linear.matrix(), 16, "int8")
    placer.finish()
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / "g.onnx")
    rows = rng.standard_normal((2, 32)).astype(np.float32)
    with open_graph(tmp_path / "g.onnx", "onnxruntime") as session:
        got = session.run({"x": rows})["y"].numpy()
    np.testing.assert_allclose(got, rows @ round_blocks(np.ascontiguousarray(weight.T), 16, "int8"), atol=5e-2)


def test_a_target_that_reads_no_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="need opset 21, and the target reads up to 20"):
        Recipe(numerics="s8-fp16", weight_only={DECODER: "int4"}, max_opset=20)
