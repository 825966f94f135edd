"""`quantize` from the options to the published bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.calibration.observation.statistics import TensorStatistics, load_statistics
from edgevqa.calibration.quantization.formats import FORMATS
from edgevqa.calibration.quantization.layer_errors import Weights, choose_range, output_error
from edgevqa.calibration.quantization.plan import correction
from edgevqa.calibration.quantization.quantizer import Quantizer
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.quantization.run import QuantizeOptions, quantize
from edgevqa.calibration.quantization.variant_report import VariantReport
from edgevqa.calibration.quantization.variants import wanted_numerics
from edgevqa.calibration.quantization.weight_scales import absmax_scales, clipped_scales
from edgevqa.evaluation.layers import layers_of
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import InputError

LAYERS = 95


@pytest.fixture
def copy(calibrated: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "reference.bundle"
    shutil.copytree(calibrated.root, path)
    return path


def test_a_bundle_with_int8_for_two_targets(copy: Path) -> None:
    options = QuantizeOptions(
        precision="int8", targets=("cpu", "jetson-orin-jp6"), data="scenes:11:80", samples=32, threads=1
    )
    done = quantize(copy, options)
    assert [variant.name for variant in done.variants] == ["int8-u8-fp32", "int8-s8-fp16"]
    bundle = Bundle.open(copy)
    assert all(row.passed for row in bundle.verify())
    assert not done.calibrated
    assert done.warnings == []
    for made in done.variants:
        assert made.check is not None
        assert made.check.samples == 32
        assert made.check.agreement >= 95
        assert made.check.float_accuracy is not None
        assert made.size_bytes < 0.35 * done.float_size_bytes
        report = read_report(bundle, made.name)
        assert len(report.layers) == LAYERS
        assert [row.name for row in report.kept_high] == ["language_decoder/language_model.lm_head"]
        assert report.size_bytes == made.size_bytes == made.spec.size_bytes
        assert report.recipe["numerics"] == made.spec.numerics
        assert sum(graph.layers for graph in report.graphs.values()) == LAYERS
        assert len(layers_of(bundle, made.name)) == LAYERS
    assert any(read_report(bundle, "int8-s8-fp16").overflow.values()), "RMS norms stay FP32 inside FP16"


def read_report(bundle: Bundle, variant: str) -> VariantReport:
    spec = bundle.variant(variant).report
    assert spec is not None
    return msgspec.json.decode((bundle.root / spec.path).read_bytes(), type=VariantReport)


def test_a_variant_of_the_same_name_is_replaced_and_others_stay(copy: Path) -> None:
    first = quantize(copy, QuantizeOptions(precision="int8", targets=("cpu",), method="max", threads=1))
    fp16 = quantize(copy, QuantizeOptions(precision="fp16", targets=("cpu",), threads=1))
    second = quantize(copy, QuantizeOptions(precision="int8", targets=("cpu",), method="mse", threads=1))
    bundle = Bundle.open(copy)
    assert list(bundle.manifest.variants) == ["fp32", "int8-u8-fp32", "fp16"]
    assert bundle.variant("fp16") == fp16.variants[0].spec
    assert first.variants[0].spec.weights != second.variants[0].spec.weights
    assert bundle.variant("int8-u8-fp32") == second.variants[0].spec
    assert read_report(bundle, "int8-u8-fp32").recipe["method"] == "mse"
    assert all(row.passed for row in bundle.verify())


def test_without_data_it_says_that_answers_were_not_checked(copy: Path) -> None:
    done = quantize(copy, QuantizeOptions(precision="int8", targets=("cpu",), method="max", decoder="high", threads=1))
    assert done.warnings == ["No --data was given: only local errors were measured, no answers."]
    assert done.variants[0].check is None
    report = done.variants[0].report
    assert report is not None
    assert {row.graph for row in report.kept_high} == {"language_decoder"}
    assert [row.reason for row in report.kept_high].count("asked to stay high") == 18
    assert report.graphs["language_decoder"].quantised == 0


def test_a_bundle_without_calibration_is_calibrated_first(reference_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.bundle"
    shutil.copytree(reference_bundle, path)
    with pytest.raises(InputError, match=r"has no calibration, which --precision int8 needs.*edgevqa calibrate"):
        quantize(path, QuantizeOptions(precision="int8"))
    told: list[str] = []
    done = quantize(
        path,
        QuantizeOptions(precision="int8", targets=("cpu",), method="max", data="scenes:5:40", threads=1, samples=10),
        report=lambda what, done, total: told.append(what),
    )
    assert done.calibrated
    calibration = done.bundle.manifest.calibration
    assert calibration is not None
    assert calibration.samples == 30  # the rest is left to check with
    assert [warning.partition(":")[0] for warning in done.warnings] == ["Answers were not checked"]
    assert "int8-u8-fp32: write graphs" in told


def test_what_the_bundles_own_target_cannot_run_is_said_before_calibrating(
    reference_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "legacy.bundle"
    shutil.copytree(reference_bundle, path)
    bundle = Bundle.open(path)
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, target="jetson-orin-legacy"))
    told: list[str] = []
    for data in (None, "scenes:5:40"):
        options = QuantizeOptions(precision="int8", data=data)
        with pytest.raises(InputError, match="'jetson-orin-legacy' cannot run int8"):
            quantize(path, options, report=lambda what, done, total: told.append(what))
    assert told == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int3"}, "--precision int3: expected fp16, bf16, int8, fp8, mixed"),
        ({"precision": "int8", "targets": ("moon",)}, "There is no target 'moon'"),
        ({"precision": "fp8", "targets": ("jetson-orin-jp6",)}, "Target 'jetson-orin-jp6' cannot run fp8"),
        ({"precision": "int8", "targets": ("jetson-orin-legacy",)}, "upgrade to JetPack 6.1"),
        ({"precision": "mixed"}, "--precision mixed needs --data"),
        ({"precision": "int8", "method": "median"}, "--method median: expected auto, max"),
        ({"precision": "int8", "decoder": "int2"}, "--decoder int2: expected int8, weight-int8"),
        ({"precision": "int8", "samples": 0}, "--samples 0: expected at least 1"),
        ({"precision": "int8", "min_agreement": 101.0}, "--min-agreement 101: expected a percentage"),
        ({"precision": "mixed", "data": "scenes:1:90", "max_drop": -1.0}, "--max-drop -1: expected the points"),
        ({"precision": "int8", "max_drop": 0.5}, "--max-drop: --precision int8 searches nothing"),
        ({"precision": "fp16", "time_limit_s": 60.0}, "--time-limit: --precision fp16 searches nothing"),
        ({"precision": "int8", "max_drop": 1.0, "time_limit_s": 60.0}, "--max-drop and --time-limit: --precision int8"),
        ({"precision": "fp16", "decoder": "weight-int4"}, "--decoder weight-int4: fp16 casts the whole model"),
        ({"precision": "bf16", "encoder": "high", "residual": True}, "--encoder high and --residual: bf16 casts"),
        ({"precision": "int8", "block_size": 64}, "--block-size 64 is for weights alone: say --decoder weight-int4"),
    ],
)
def test_options_check_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizeOptions(**settings)


def test_blocks_for_a_target_of_an_older_opset_come_with_a_warning(copy: Path) -> None:
    options = QuantizeOptions(precision="int8", targets=("jetson-orin-jp6",), decoder="weight-int4")
    made = quantize(copy, options).variants[0]
    assert made.report is not None
    assert any("INT4 weights need opset 21" in line for line in made.report.warnings)
    assert Bundle.open(copy).graph(made.name, "language_decoder").opset == 21


def test_numerics_follow_the_targets(calibrated: Bundle) -> None:
    options = QuantizeOptions(precision="int8", targets=("cpu", "cuda", "openvino", "rtx", "jetson-orin-jp7"))
    assert list(wanted_numerics(calibrated, options)) == ["u8-fp32", "s8-fp32", "s8-fp16"]
    assert next(iter(wanted_numerics(calibrated, QuantizeOptions(precision="int8")))) == "u8-fp32"


def test_equal_layers_are_told_of_each_other(calibrated: Bundle) -> None:
    quantizer = Quantizer(calibrated, load_statistics(calibrated), Recipe(numerics="s8-fp32", method="max"))
    layers = {row.name: row for row in quantizer.layers()}
    name = "language_model.encoder.block.0.layer.0.SelfAttention.q"
    assert layers[f"question_encoder/{name}"].shared == (f"language_encoder/{name}",)
    trunk = layers["vision_trunk/vision.layers.0.mlp.fc1"]
    assert trunk.parameters == 160 * 512
    assert trunk.macs == pytest.approx(trunk.parameters * 65, rel=0.5)  # a run of 65 tokens for most questions


def statistics_of(rows: np.ndarray, extreme: float | None = None) -> TensorStatistics:
    """As if the rows were all that was seen, but for one value."""
    rows = rows.astype(np.float32)
    absmax = np.abs(rows).max(axis=0)
    if extreme is not None:
        absmax[0] = extreme
    limit = float(2.0 ** np.ceil(np.log2(absmax.max())))
    counts, _ = np.histogram(rows, bins=4096, range=(-limit, limit))
    if extreme is not None:
        counts[int((extreme + limit) / (2 * limit) * 4096) - 1] += 1
    return TensorStatistics(
        low=float(rows.min()),
        high=max(float(rows.max()), extreme or 0.0),
        limit=limit,
        counts=counts.astype(np.int64),
        channel_absmax=absmax,
        channel_mean=rows.mean(axis=0),
        rows=rows,
        row_count=len(rows) + (extreme is not None),
    )


def test_the_error_is_that_of_the_output() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 16)).astype(np.float32)
    weight = rng.standard_normal((16, 4)).astype(np.float32)
    kind = FORMATS["s8-fp32"]
    scale = kind.activation(-4.0, 4.0)
    error = output_error(statistics_of(rows), scale, Weights.of(weight, weight))
    rounded = np.clip(np.rint(rows / scale.scale), -128, 127) * scale.scale
    expected = np.linalg.norm(rounded @ weight - rows @ weight) / np.linalg.norm(rows @ weight)
    assert error.relative == pytest.approx(expected, rel=1e-4)


def test_auto_takes_the_range_with_the_least_output_error() -> None:
    """One value of a hundred times the others, in a channel that the weight does not read: cut it off; else keep it."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((128, 64))
    rows[0, 0] = 200.0
    methods = ("max", "percentile-99.9")
    unread = rng.standard_normal((64, 4)).astype(np.float32)
    unread[0] = 0.0
    read = unread.copy()
    read[0] = 20.0
    kind = FORMATS["s8-fp32"]
    statistics = statistics_of(rows)
    cut = choose_range(statistics, [Weights.of(unread, unread)], kind, methods)
    kept = choose_range(statistics, [Weights.of(read, read)], kind, methods)
    assert cut.method == "percentile-99.9"
    assert cut.scale.high < 100
    assert kept.scale.high > 150


def test_what_the_kept_rows_lack_still_counts() -> None:
    """Values that calibration saw, but not among the rows that it kept."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 8))
    weight = rng.standard_normal((8, 4)).astype(np.float32)
    scale = FORMATS["s8-fp32"].activation(-4.0, 4.0)
    weights = Weights.of(weight, weight)
    assert output_error(statistics_of(rows, extreme=500.0), scale, weights).relative > 1.0
    assert output_error(statistics_of(rows), scale, weights).relative < 0.02


def test_clipping_a_weight_is_searched_channel_by_channel() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 2)).astype(np.float32)
    weight[0, 0] = 7.0  # read by a channel that is almost always zero: not worth the range
    rows = rng.standard_normal((64, 256)).astype(np.float32)
    rows[:, 0] *= 1e-3
    kind = FORMATS["s8-fp32"]
    widest, clipped = absmax_scales(weight, kind), clipped_scales(weight, [rows], kind)
    assert clipped[0] < 0.75 * widest[0]
    assert clipped[1] > 0.79 * widest[1]


def test_bias_correction_takes_out_the_mean_error_and_not_the_noise() -> None:
    rng = np.random.default_rng(0)
    rows = (np.abs(rng.standard_normal((128, 64))) + 1.0).astype(np.float32)
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    scale = FORMATS["s8-fp32"].activation(-1.5, 1.5)  # cuts off every row: a bias
    weights = Weights.of(weight, weight)
    lacking = rows @ weight - scale.round(rows) @ weight
    vector = correction(rows, scale, weights)
    fresh = (np.abs(rng.standard_normal((128, 64))) + 1.0).astype(np.float32)
    before = fresh @ weight - scale.round(fresh) @ weight
    left = np.linalg.norm((before - vector).mean(axis=0))
    assert left < 0.5 * np.linalg.norm(before.mean(axis=0))
    assert np.all(np.abs(vector) <= np.abs(lacking.mean(axis=0)) * 1.0001)
    exact = FORMATS["s8-fp32"].activation(-8.0, 8.0)
    assert np.abs(correction(rows, exact, weights)).max() < 0.05


def test_a_corrected_variant_answers(copy: Path) -> None:
    """Biases are added where there were none, and each use of a fused layer gets its own."""
    options = QuantizeOptions(
        precision="int8",
        targets=("cpu",),
        method="max",
        bias_correction=True,
        data="scenes:11:60",
        samples=32,
        threads=1,
    )
    made = quantize(copy, options).variants[0]
    assert made.check is not None
    assert made.check.agreement >= 95
    adds = made.spec.graphs["language_encoder"].nodes["Add"]
    assert adds == Bundle.open(copy).graph("fp32", "language_encoder").nodes["Add"] + 18
