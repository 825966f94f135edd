"""Weights alone in 8 and 4 bits: what is stored, how well, and that backends read it as we do."""

from __future__ import annotations

import weakref
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
    weight = rng.standard_normal((32, 6)).astype(np.float32)
    model = product(weight, transposed=True)
    placer = Placer(model)
    linear = find_linears(model.graph)["layer"]
    placer.quantise_weight(linear, linear.matrix, 16, "int8")
    placer.finish()
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / "g.onnx")
    rows = rng.standard_normal((2, 32)).astype(np.float32)
    with open_graph(tmp_path / "g.onnx", "onnxruntime") as session:
        got = session.run({"x": rows})["y"].numpy()
    np.testing.assert_allclose(got, rows @ round_blocks(weight, 16, "int8"), atol=5e-2)


def product(weight: np.ndarray, *, transposed: bool) -> ir.Model:
    """`x` (2, in) times `weight` (in, out), stored (out, in) where it is transposed."""
    inputs, outputs = weight.shape
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, inputs]))
    w = ir.Value(
        name="layer.weight",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(stored.shape),
        const_value=ir.Tensor(stored, name="layer.weight"),
    )
    node = ir.node("Gemm", [x, w], {"transB": int(transposed)}, name="layer")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape([2, outputs])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("bits", "opset", "scales"), [("int8", 20, (6,)), ("int4", 21, (2, 6))])
def test_what_a_target_of_opset_20_gets(bits: WeightBits, opset: int, scales: tuple[int, ...], tmp_path: Path) -> None:
    """INT8 with one scale an output channel, which every opset has; INT4 in blocks, which TensorRT 10 reads anyway."""
    recipe = Recipe(numerics="s8-fp16", weight_only={DECODER: bits}, max_opset=20, block_size=32)
    weight = np.random.default_rng(3).standard_normal((64, 6)).astype(np.float32)
    model = product(weight, transposed=False)
    linear = find_linears(model.graph)["layer"]
    placer = Placer(model, max_opset=20)
    placer.quantise_weight(linear, linear.matrix, recipe.block_of(DECODER, 64), bits)
    placer.finish()
    assert model.opset_imports[""] == opset
    found = model.graph.initializers["layer.weight.scale"].const_value
    assert found is not None
    assert tuple(found.shape.numpy()) == scales
    expected = round_blocks(weight, recipe.block_of(DECODER, 64), bits)
    rows = np.random.default_rng(4).standard_normal((2, 64)).astype(np.float32)
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / "g.onnx")
    with open_graph(tmp_path / "g.onnx", "onnxruntime") as session:
        np.testing.assert_allclose(session.run({"x": rows})["y"].numpy(), rows @ expected, atol=2e-1)


def test_one_weight_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Nothing is computed before the graph is written, each weight once, and the copy is dropped after."""
    weight = np.ones((64, 40), dtype=np.float32)
    model = product(weight, transposed=True)
    alive: list[weakref.ref[np.ndarray]] = []

    def read() -> np.ndarray:
        copied = weight.copy()
        alive.append(weakref.ref(copied))
        return copied

    placer = Placer(model)
    placer.quantise_weight(find_linears(model.graph)["layer"], read, 32, "int8")
    placer.finish()
    assert not alive
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / "g.onnx")
    assert len(alive) == 1
    assert alive[0]() is None
