"""SmoothQuant changes numbers, never the function: exact folds, found in every graph where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.blocks import FloatGraph, find_blocks, find_layers
from edgevqa.calibration.quantization.plan import Plan, make_plan
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.quantization.smoothed import smoothed_absmax
from edgevqa.calibration.quantization.smoothquant import find_folds, smoothing
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.ort import OrtSession

GRAPHS = ["vision_trunk", "question_encoder", "vision_fusion", "projector", "language_encoder", "language_decoder"]


@pytest.fixture(scope="module")
def floats(calibrated: Bundle) -> dict[str, FloatGraph]:
    statistics = load_statistics(calibrated)
    return {
        name: FloatGraph.of(name, load_graph(calibrated.graph_path("fp32", name)), statistics[name]) for name in GRAPHS
    }


@pytest.fixture(scope="module")
def plan(floats: dict[str, FloatGraph]) -> Plan:
    return make_plan(floats, Recipe(numerics="s8-fp32"))


def sample_inputs(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    """Random inputs with the shapes of two questions of five words about one picture."""
    rng = np.random.default_rng(3)
    sizes = {"batch": 2, "image": 1, "words": 5, "keys": 70, "capacity": 4}
    arrays: dict[str, np.ndarray] = {}
    for spec in bundle.graph("fp32", graph).inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        if spec.name == "cache_length":
            arrays[spec.name] = np.array([2], dtype=np.int64)
        elif "mask" in spec.name:
            arrays[spec.name] = np.ones(shape, dtype=np.int64)
        elif spec.dtype == "int64":
            arrays[spec.name] = rng.integers(3, 100, shape)
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return arrays


def run(bundle: Bundle, graph: str, path: Path) -> dict[str, np.ndarray]:
    with OrtSession(path, graph, bundle.graph("fp32", graph), SessionOptions(threads=1)) as session:
        return {name: value.numpy() for name, value in session.run(sample_inputs(bundle, graph)).items()}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_smoothed_float_graph_is_the_same_function(
    calibrated: Bundle, plan: Plan, graph: str, tmp_path: Path
) -> None:
    model = load_graph(calibrated.graph_path("fp32", graph))
    assert plan.smoothings[graph].inputs, "nothing was smoothed, so nothing is shown"
    plan.smoothings[graph].apply(model.graph)
    with SharedWeights(tmp_path / "weights.data") as weights:
        weights.write_graph(model, tmp_path / f"{graph}.onnx")
    before = run(calibrated, graph, calibrated.graph_path("fp32", graph))
    after = run(calibrated, graph, tmp_path / f"{graph}.onnx")
    for name, expected in before.items():
        assert np.abs(after[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name


@pytest.mark.parametrize(
    ("graph", "layer", "into"),
    [
        ("vision_trunk", "vision.layers.0.self_attn.q_proj", "vision.layers.0.layer_norm1.weight"),
        ("vision_trunk", "vision.layers.0.self_attn.out_proj", "vision.layers.0.self_attn.v_proj"),
        ("vision_fusion", "vision.layers.3.self_attn.out_proj", "vision.layers.3.self_attn.v_proj"),
        ("projector", "projector.layers.1", "projector.layers.0"),
        (
            "language_encoder",
            "language_model.encoder.block.0.layer.0.SelfAttention.o",
            "language_model.encoder.block.0.layer.0.SelfAttention.v",
        ),
        (
            "language_encoder",
            "language_model.encoder.block.1.layer.1.DenseReluDense.wo",
            "language_model.encoder.block.1.layer.1.DenseReluDense.wi_1",
        ),
        (
            "language_decoder",
            "language_model.decoder.block.0.layer.2.DenseReluDense.wi_0",
            "language_model.decoder.block.0.layer.2.layer_norm.weight",
        ),
    ],
)
def test_where_it_is_folded(floats: dict[str, FloatGraph], graph: str, layer: str, into: str) -> None:
    folds = find_folds(floats[graph].linears[layer].uses[0].input, floats[graph].linears)
    assert folds is not None
    assert into in [name for fold in folds for name in (*fold.vectors, fold.linear)]


def test_keys_and_values_of_a_fused_layer_share_one_s_for_picture_and_question(plan: Plan) -> None:
    """LN1 of the picture, the last Linear of the question's reducer, and q, k and v all take the same vector."""
    smoothing = plan.smoothings["vision_fusion"]
    prefix = "vision.layers.3"
    divisors = [
        smoothing.vectors[f"{prefix}.layer_norm1.weight"],
        smoothing.vectors[f"{prefix}.layer_norm1.bias"],
        smoothing.outputs[f"{prefix}.question_reducer.3"],
        *(smoothing.inputs[f"{prefix}.self_attn.{name}_proj"] for name in "qkv"),
    ]
    for divisor in divisors[1:]:
        np.testing.assert_array_equal(divisor, divisors[0])


@pytest.mark.parametrize(
    ("graph", "layer"),
    [
        ("vision_trunk", "vision.layers.0.mlp.fc2"),  # QuickGELU is not proportional
        ("projector", "projector.layers.0"),  # a graph input
        ("language_encoder", "language_model.decoder.block.0.layer.1.EncDecAttention.k"),  # a graph output
        ("language_decoder", "language_model.decoder.block.0.layer.0.SelfAttention.o"),  # its V leaves the graph
    ],
)
def test_where_it_cannot_be_folded(floats: dict[str, FloatGraph], graph: str, layer: str) -> None:
    assert find_folds(floats[graph].linears[layer].uses[0].input, floats[graph].linears) is None


def test_a_tensor_that_something_else_reads_is_left_alone(calibrated: Bundle) -> None:
    model = load_graph(calibrated.graph_path("fp32", "vision_trunk"))
    value = find_linears(model.graph)["vision.layers.1.mlp.fc1"].uses[0].input
    assert find_folds(value, find_linears(model.graph)) is not None
    other = ir.node("Relu", [value], name="other")
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, other)
    assert find_folds(value, find_linears(model.graph)) is None


def test_blocks_join_the_graphs_that_hold_the_same_weights(floats: dict[str, FloatGraph]) -> None:
    blocks = find_blocks(floats, find_layers(floats))
    for block in blocks:
        names = {layer.name for layer in block.layers}
        twins = {name.replace("question_encoder/", "language_encoder/") for name in names if "question_enc" in name}
        assert twins <= names
    assert sum(len(block.layers) for block in blocks) == len(find_layers(floats))


def test_smoothing_evens_out_channels() -> None:
    """Checked against the formula by hand: alpha 1 takes all from the inputs, alpha 0 all from the weights."""
    absmax = np.array([8.0, 2.0, 0.0], dtype=np.float32)
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]], dtype=np.float32)
    assert smoothing(absmax, [weight], 1.0) == pytest.approx([2.0, 0.5, 1.0])
    assert smoothing(absmax, [weight], 0.0) == pytest.approx([0.5, 2.0, 1.0])
    halves = smoothing(absmax, [weight], 0.5)
    assert halves == pytest.approx([1.0, 1.0, 1.0])


def test_ranges_that_fp16_is_checked_with_follow_the_smoothing(floats: dict[str, FloatGraph], plan: Plan) -> None:
    graph = floats["vision_trunk"]
    changed = smoothed_absmax(graph, plan.smoothings["vision_trunk"])
    assert changed.keys() == graph.statistics.absmax.keys()
    for name, divisor in plan.smoothings["vision_trunk"].tensors.items():
        expected = np.abs(graph.statistics.inputs[name].rows / divisor).max()
        assert changed[name] >= expected * 0.999
    assert changed["layer_norm_1"] != graph.statistics.absmax["layer_norm_1"]
    assert changed["add_114"] == graph.statistics.absmax["add_114"]
