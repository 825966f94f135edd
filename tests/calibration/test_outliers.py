"""Outliers as real vision transformers have them ruin careless INT8; ours notices, and repairs or refuses.

They are planted in the weights: |x| of about 1,000 in two channels of the residual stream, and, changing nothing in
float, of some hundreds in three channels of what the Linear layers read.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.observation.run import CalibrateOptions, calibrate
from edgevqa.calibration.observation.statistics import GraphStatistics, load_statistics, save_statistics
from edgevqa.calibration.quantization.quantizer import Quantizer, WrittenGraph
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.quantization.run import QuantizeOptions, quantize
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.evaluation.answers import answer_all, texts_of
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.pipeline import Pipeline

pytestmark = pytest.mark.slow

OUTLIER = 1000.0
STREAM = (3, 40)  # channels of the residual stream: one up, one down
READ = (7, 21, 99)  # channels of the norms' outputs
FACTOR = np.float32(500.0)
QUESTIONS = 48


def plant(calibrated: Bundle, path: Path) -> Bundle:
    """A copy of the bundle with outliers, uncalibrated.

    The norms' weights make up for the larger variance of the stream, by its mean over tokens.
    """
    shutil.copytree(calibrated.root, path)
    bundle = Bundle.open(path)
    statistics = load_statistics(bundle)
    spec = bundle.variant("fp32")
    with BundleWriter.extend(bundle) as writer:
        graphs = {}
        with SharedWeights(writer.path("graphs/fp32/weights.data")) as weights:
            for name in spec.graphs:
                model = load_graph(bundle.graph_path("fp32", name))
                if name in ("vision_trunk", "vision_fusion"):
                    plant_in(model.graph, statistics[name], name)
                weights.write_graph(model, writer.path(f"graphs/fp32/{name}.onnx"))
                graphs[name] = graph_spec(model, writer.describe(f"graphs/fp32/{name}.onnx"))
        spec = msgspec.structs.replace(spec, weights=writer.describe("graphs/fp32/weights.data"), graphs=graphs)
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants={"fp32": spec}, calibration=None))


def plant_in(graph: ir.Graph, statistics: GraphStatistics, name: str) -> None:
    weights: set[str] = set()
    for node in graph:
        if node.op_type != "LayerNormalization" or ".layer_norm" not in str(node.inputs[1] and node.inputs[1].name):
            continue
        stream, weight, bias = (value for value in node.inputs if value is not None)
        rows = statistics.inputs[str(stream.name)].rows
        spread = rows.std(axis=1)
        larger = np.sqrt(spread**2 + 2 * OUTLIER**2 / rows.shape[1])
        grown = array(weight) * np.float32(larger.mean() / spread.mean())
        grown[list(STREAM)] = 0.05
        shifted = array(bias)
        grown[list(READ)] *= FACTOR
        shifted[list(READ)] *= FACTOR
        put(weight, grown)
        put(bias, shifted)
        for use in node.outputs[0].uses():
            matrix = use.node.inputs[1]
            assert matrix is not None
            assert matrix.name not in weights
            weights.add(str(matrix.name))
            smaller = array(matrix)
            smaller[list(READ)] /= FACTOR
            put(matrix, smaller)
    ends = graph.initializers
    if name == "vision_trunk":
        shift(ends["vision.pre_layrnorm.bias"], OUTLIER)
        return
    shift(ends["vision.layers.5.mlp.fc2.bias"], -OUTLIER)  # the projector reads what it read before
    for layer in (3, 4, 5):  # the question's part of k and v reads larger values too
        reducer = ends[f"vision.layers.{layer}.question_reducer.3.weight"]
        larger_question = array(reducer)
        larger_question[:, list(READ)] *= FACTOR
        put(reducer, larger_question)


def shift(value: ir.Value, amount: float) -> None:
    vector = array(value)
    vector[STREAM[0]] += amount
    vector[STREAM[1]] -= amount
    put(value, vector)


def array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.array(value.const_value.numpy(), dtype=np.float32)


def put(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.Tensor(array, name=value.name)


@pytest.fixture(scope="module")
def planted(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("planted") / "planted.bundle"
    plant(calibrated, path)
    return calibrate(path, CalibrateOptions(data="scenes:3:200", samples=24, threads=1)).bundle


@pytest.fixture(scope="module")
def float_answers(planted: Bundle) -> list[str]:
    return answers(planted, "fp32")


def answers(bundle: Bundle, variant: str) -> list[str]:
    samples = list(open_dataset(f"scenes:11:{QUESTIONS}"))
    with Pipeline.load(bundle.root, precision=variant, backend="onnxruntime", threads=1) as pipeline:
        return texts_of(answer_all(pipeline, samples))


def publish(planted: Bundle, recipe: Recipe, path: Path) -> tuple[Bundle, list[WrittenGraph]]:
    """The bundle with a variant "int8" by this recipe, whatever its answers are."""
    shutil.copytree(planted.root, path)
    bundle = Bundle.open(path)
    quantizer = Quantizer(bundle, load_statistics(bundle), recipe)
    with BundleWriter.extend(bundle) as writer:
        spec, written = quantizer.write(writer, "int8", "int8")
        variants = {**bundle.manifest.variants, "int8": spec}
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants)), written


def agreement(first: list[str], second: list[str]) -> float:
    return float(np.mean([one == other for one, other in zip(first, second, strict=True)]))


def test_the_planted_model_still_answers_and_has_outliers(planted: Bundle, float_answers: list[str]) -> None:
    statistics = load_statistics(planted)["vision_trunk"]
    assert statistics.absmax["add_143"] == pytest.approx(OUTLIER, rel=0.05)
    read = statistics.inputs["layer_norm_1"].channel_absmax
    assert read.max() > 100 * np.median(read)
    assert len(set(float_answers)) >= 5


def test_careless_residual_adds_destroy_the_answers(planted: Bundle, float_answers: list[str], tmp_path: Path) -> None:
    """What the guard is for: the same as below, without it."""
    careless = Recipe(numerics="u8-fp32", residual=True, max_residual_error=math.inf)
    bundle, written = publish(planted, careless, tmp_path / "b")
    assert all(point.reason is None for graph in written for point in graph.residuals)
    assert agreement(answers(bundle, "int8"), float_answers) < 0.6


def test_residual_adds_that_would_destroy_are_found_and_kept_high(
    planted: Bundle, float_answers: list[str], tmp_path: Path
) -> None:
    bundle, written = publish(planted, Recipe(numerics="u8-fp32", residual=True), tmp_path / "b")
    kept = {
        graph.path.stem: [point for point in graph.residuals if point.reason is not None]
        for graph in written
        if graph.residuals
    }
    assert len(kept["vision_trunk"]) == len(kept["vision_fusion"]) == 6
    assert kept["language_encoder"] == kept["language_decoder"] == []
    for point in kept["vision_trunk"]:
        assert point.error is not None
        assert point.error > 0.5
        assert "variation" in (point.reason or "")
    assert agreement(answers(bundle, "int8"), float_answers) >= 0.95


def test_linears_alone_keep_the_answers_with_smoothing_only(
    planted: Bundle, float_answers: list[str], tmp_path: Path
) -> None:
    smooth, _ = publish(planted, Recipe(numerics="u8-fp32"), tmp_path / "smooth")
    plain, _ = publish(
        planted, Recipe(numerics="u8-fp32", smooth=False, method="max", max_error=math.inf), tmp_path / "plain"
    )
    assert agreement(answers(smooth, "int8"), float_answers) >= 0.95
    assert agreement(answers(plain, "int8"), float_answers) < 0.7


def test_layers_with_an_absurd_error_are_kept_high_and_listed(
    planted: Bundle, float_answers: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(planted.root, path)
    options = QuantizeOptions(precision="int8", targets=("cpu",), smooth=False, method="max", threads=1)
    made = quantize(path, options)
    report = made.variants[0].report
    assert report is not None
    high = {row.name: row for row in report.kept_high}
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"):
        row = high[f"vision_trunk/vision.layers.0.{layer}"]
        assert row.local_error is not None
        assert row.local_error > 0.3
        assert row.reason == f"local error {row.local_error:.2f} is beyond 0.3"
    assert "vision_trunk/vision.layers.0.mlp.fc2" not in high
    assert agreement(answers(made.bundle, "int8-u8-fp32"), float_answers) >= 0.95


def test_answers_that_change_are_refused_and_nothing_is_written(calibrated: Bundle, tmp_path: Path) -> None:
    """Ranges from data that is nothing like the real: local errors are small, the answers tell."""
    path = tmp_path / "bundle"
    shutil.copytree(calibrated.root, path)
    bundle = Bundle.open(path)
    false = {name: shrunk(found) for name, found in load_statistics(bundle).items()}
    with BundleWriter.extend(bundle) as writer:
        save_statistics(writer.path("calibration/observations.npz"), false, fingerprint=bundle.fingerprint("fp32"))
        assert bundle.manifest.calibration is not None
        spec = msgspec.structs.replace(
            bundle.manifest.calibration, observations=writer.describe("calibration/observations.npz")
        )
        writer.finish(msgspec.structs.replace(bundle.manifest, calibration=spec))
    before = (path / "manifest.json").read_bytes()
    options = QuantizeOptions(precision="int8", targets=("cpu",), data="scenes:11:64", samples=32, threads=1)
    with pytest.raises(CheckFailed, match=r"of 32 questions of scenes:11:64; at least 90 % was asked for"):
        quantize(path, options)
    assert (path / "manifest.json").read_bytes() == before
    assert sorted(file.name for file in (path / "graphs").iterdir()) == ["fp32"]


def shrunk(statistics: GraphStatistics, factor: float = 0.01) -> GraphStatistics:
    """As if every input had been a hundredth of what it is."""
    part = np.float32(factor)
    inputs = {
        name: replace(
            found,
            low=found.low * factor,
            high=found.high * factor,
            limit=found.limit * factor,
            channel_absmax=found.channel_absmax * part,
            channel_mean=found.channel_mean * part,
            rows=found.rows * part,
        )
        for name, found in statistics.inputs.items()
    }
    return GraphStatistics(inputs=inputs, absmax=statistics.absmax)
