"""Where quantising nodes are put, with which types, scales and zero points, and that the backends run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.quantizer import Quantizer, WrittenGraph
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.evaluation.answers import answer_all, texts_of
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.pipeline import Pipeline

NUMERICS: list[Numerics] = ["u8-fp32", "s8-fp32", "s8-fp16", "fp8-fp16"]
QUESTIONS = 24
Write = Callable[[Numerics], "tuple[Bundle, list[WrittenGraph]]"]


@pytest.fixture(scope="module")
def variants(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A bundle with the variant of these numerics, and what was written; each once."""
    made: dict[Numerics, tuple[Bundle, list[WrittenGraph]]] = {}

    def write(numerics: Numerics) -> tuple[Bundle, list[WrittenGraph]]:
        if numerics not in made:
            quantizer = Quantizer(calibrated, load_statistics(calibrated), Recipe(numerics=numerics))
            made[numerics] = publish(calibrated, quantizer, tmp_path_factory.mktemp(numerics), numerics)
        return made[numerics]

    return write


def publish(
    calibrated: Bundle, quantizer: Quantizer, folder: Path, name: str, high: tuple[str, ...] = ()
) -> tuple[Bundle, list[WrittenGraph]]:
    """A bundle of fp32 and one variant."""
    with BundleWriter(folder / "new.bundle") as writer:
        for file in calibrated.files("fp32"):
            writer.add_file(calibrated.root / file.path, file.path)
        spec, written = quantizer.write(writer, name, "int8", high)
        manifest = calibrated.manifest
        variants = {"fp32": manifest.variants["fp32"], name: spec}
        return writer.finish(msgspec.structs.replace(manifest, variants=variants, calibration=None)), written


def graph_of(bundle: Bundle, variant: str, graph: str) -> ir.Graph:
    return load_graph(bundle.graph_path(variant, graph)).graph


def constant(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return np.array(value.const_value.numpy())


@pytest.mark.parametrize("numerics", NUMERICS)
def test_linears_are_quantised_and_nothing_else(variants: Write, numerics: Numerics) -> None:
    bundle, written = variants(numerics)
    assert sum(len(graph.quantised) for graph in written) == 94
    assert [name for graph in written for name in graph.high] == ["language_decoder/language_model.lm_head"]
    for name in bundle.variant(numerics).graphs:
        graph = graph_of(bundle, numerics, name)
        for node in graph:
            if node.op_type != "DequantizeLinear":
                continue
            readers = [use.node for use in node.outputs[0].uses()]
            casts = [use.node for reader in readers if reader.op_type == "Cast" for use in reader.outputs[0].uses()]
            found = {reader.op_type for reader in readers if reader.op_type != "Cast"} | {n.op_type for n in casts}
            assert found <= {"MatMul", "Gemm"}, node.name


def test_a_tensor_that_several_layers_read_is_quantised_once(variants: Write) -> None:
    bundle, _ = variants("s8-fp32")
    for name in bundle.variant("s8-fp32").graphs:
        quantised = Counter(
            node.inputs[0].name
            for node in graph_of(bundle, "s8-fp32", name)
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        )
        assert set(quantised.values()) == {1}
    trunk = graph_of(bundle, "s8-fp32", "vision_trunk")
    assert sum(node.op_type == "QuantizeLinear" for node in trunk) == 4 * 3  # q, k and v share one


def test_picture_and_question_have_scales_of_their_own_in_a_fused_layer(variants: Write) -> None:
    bundle, _ = variants("s8-fp32")
    nodes = {node.name: node for node in graph_of(bundle, "s8-fp32", "vision_fusion")}
    layer = "vision.layers.3.self_attn.k_proj"
    scales, weights = [], []
    for name in (layer, f"{layer}.1"):
        value, weight = nodes[name].inputs
        assert value is not None
        assert weight is not None
        dequantise = value.producer()
        assert dequantise is not None
        scales.append(float(constant(dequantise.inputs[1])))
        weights.append(weight)
    assert scales[0] != scales[1]
    assert weights[0] is weights[1]  # dequantised once


@pytest.mark.parametrize("numerics", NUMERICS)
def test_types_scales_and_zero_points(variants: Write, numerics: Numerics) -> None:
    bundle, _ = variants(numerics)
    activation = {"u8": ir.DataType.UINT8, "s8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
    kind, _, around = numerics.partition("-")
    scale_type = {"fp32": np.float32, "fp16": np.float16}[around]
    for name in bundle.variant(numerics).graphs:
        graph = graph_of(bundle, numerics, name)
        nodes = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert nodes
        for node in nodes:
            assert len(node.inputs) == 3, "the zero point is written out"
            scale, zero = constant(node.inputs[1]), node.inputs[2]
            assert zero is not None
            weight = node.inputs[0] is not None and node.inputs[0].const_value is not None
            assert scale.ndim == int(weight)
            assert np.all(scale > 0)
            assert np.all(np.isfinite(scale))
            assert scale.dtype == scale_type or name in ("language_decoder", "language_encoder", "question_encoder")
            wanted = activation[kind] if not weight or kind == "fp8" else ir.DataType.INT8
            assert zero.dtype == wanted
            if weight or kind != "u8":
                assert not constant(zero).astype(np.float32).any()


def test_unsigned_activations_use_their_zero_point(variants: Write) -> None:
    """Gelu gives few negative values: its 8 bits go to the positive ones."""
    bundle, _ = variants("u8-fp32")
    nodes = {node.name: node for node in graph_of(bundle, "u8-fp32", "vision_trunk")}
    value = nodes["vision.layers.0.mlp.fc2"].inputs[0]
    assert value is not None
    dequantise = value.producer()
    assert dequantise is not None
    assert 0 < int(constant(dequantise.inputs[2])) < 100


@pytest.mark.parametrize("numerics", NUMERICS)
def test_onnx_runtime_answers_as_before(variants: Write, numerics: Numerics) -> None:
    bundle, _ = variants(numerics)
    assert agreement(bundle, numerics, "onnxruntime") >= 0.95


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("numerics", ["s8-fp32", "u8-fp32", "s8-fp16"])
def test_openvino_answers_as_before(variants: Write, numerics: Numerics) -> None:
    bundle, _ = variants(numerics)
    assert agreement(bundle, numerics, "openvino") >= 0.95


def agreement(bundle: Bundle, variant: str, backend: str) -> float:
    samples = list(open_dataset(f"scenes:11:{QUESTIONS}"))
    answers: list[list[str]] = []
    for name, by in (("fp32", "onnxruntime"), (variant, backend)):
        with Pipeline.load(bundle.root, precision=name, backend=by, threads=1) as pipeline:
            answers.append(texts_of(answer_all(pipeline, samples)))
    return float(np.mean([one == other for one, other in zip(*answers, strict=True)]))


def test_layers_can_be_kept_high_one_by_one(calibrated: Bundle, tmp_path: Path) -> None:
    """What the search writes: one graph, its weights in a file that several candidates share, loaded while it is open."""
    quantizer = Quantizer(calibrated, load_statistics(calibrated), Recipe(numerics="u8-fp32", method="max"))
    high = "projector/projector.layers.0"
    with SharedWeights(tmp_path / "weights.data") as weights:
        all_low = quantizer.write_graph(weights, tmp_path / "low.onnx", "projector")
        mixed = quantizer.write_graph(weights, tmp_path / "mixed.onnx", "projector", [high])
        before = (tmp_path / "weights.data").stat().st_size
        again = quantizer.write_graph(weights, tmp_path / "again.onnx", "projector", [high])
        nodes = {node.name: node for node in load_graph(tmp_path / "mixed.onnx").graph}
    assert all_low.high == ()
    assert mixed.high == again.high == (high,)
    assert (tmp_path / "weights.data").stat().st_size == before, "the second candidate brought nothing new"
    first, second = nodes["projector.layers.0"].inputs[1], nodes["projector.layers.1"].inputs[1]
    assert first is not None
    assert second is not None
    assert first.const_value is not None
    assert second.const_value is None  # it is dequantised


def test_weights_that_two_graphs_share_are_still_stored_once(variants: Write) -> None:
    bundle, _ = variants("s8-fp32")
    shared = 0
    places: dict[str, list[object]] = {}
    for graph in ("question_encoder", "language_encoder"):
        for name, value in graph_of(bundle, "s8-fp32", graph).initializers.items():
            if name.endswith(".quantized") and isinstance(value.const_value, ir.ExternalTensor):
                places.setdefault(name, []).append(value.const_value.offset)
    for name, offsets in places.items():
        if "encoder.block" in name:
            assert offsets[0] == offsets[1], name
            shared += 1
    assert shared == 14


def test_an_opset_without_fp16_scales_is_refused(calibrated: Bundle, tmp_path: Path) -> None:
    quantizer = Quantizer(calibrated, load_statistics(calibrated), Recipe(numerics="s8-fp16", method="max"))
    model = load_graph(calibrated.graph_path("fp32", "projector"))
    model.opset_imports[""] = 17
    ir.save(model, tmp_path / "old.onnx", external_data="old.data")
    quantizer._paths["projector"] = tmp_path / "old.onnx"
    with (
        SharedWeights(tmp_path / "weights.data") as weights,
        pytest.raises(InputError, match="opset 17; these numerics need 19"),
    ):
        quantizer.write_graph(weights, tmp_path / "new.onnx", "projector")
