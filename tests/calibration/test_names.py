"""Variants of different recipes have different names, live side by side, and are found by them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.calibration.quantization.names import DECODER, ENCODERS, variant_name
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.quantization.run import QuantizeOptions, quantize
from edgevqa.calibration.quantization.variant_report import VariantReport
from edgevqa.export.engine.choice import choose_buildable
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.graphs import choose_variant
from edgevqa.runtime.manifest import Precision
from edgevqa.runtime.pipeline import Pipeline

GRAPHS = ("vision_trunk", *ENCODERS, DECODER)
ORT = "onnxruntime"


@pytest.mark.parametrize(
    ("precision", "settings", "name"),
    [
        ("int8", {}, "int8-u8-fp32"),
        ("int8", {"method": "mse", "smooth": False, "bias_correction": True}, "int8-u8-fp32"),
        ("mixed", {"numerics": "s8-fp16"}, "mixed-s8-fp16"),
        ("fp8", {"numerics": "fp8-fp16"}, "fp8-fp16"),
        ("fp8", {"numerics": "fp8-fp16", "weight_only": {DECODER: "int4"}}, "fp8-fp16-decoder-w4"),
        ("int8", {"weight_only": {DECODER: "int4"}}, "int8-u8-fp32-decoder-w4"),
        ("int8", {"weight_only": {DECODER: "int8"}}, "int8-u8-fp32-decoder-w8"),
        ("int8", {"weight_only": {DECODER: "int4"}, "block_size": 64}, "int8-u8-fp32-decoder-w4b64"),
        ("int8", {"weight_only": {DECODER: "int8"}, "block_size": 64, "max_opset": 20}, "int8-u8-fp32-decoder-w8c"),
        ("int8", {"weight_only": dict.fromkeys(ENCODERS, "int8")}, "int8-u8-fp32-encoder-w8"),
        (
            "int8",
            {"weight_only": {DECODER: "int4", "question_encoder": "int8"}},
            "int8-u8-fp32-decoder-w4-encoder-w8",
        ),
        ("int8", {"high_graphs": (DECODER,)}, "int8-u8-fp32-decoder-high"),
        (
            "int8",
            {"weight_only": {DECODER: "int4"}, "high_graphs": ("vision_trunk", *ENCODERS)},
            "int8-u8-fp32-decoder-w4-only",
        ),
        ("int8", {"residual": True}, "int8-u8-fp32-residual"),
    ],
)
def test_a_name_tells_what_the_recipe_does_otherwise(precision: Precision, settings: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {"numerics": "u8-fp32", **settings}
    assert variant_name(precision, Recipe(**given), GRAPHS) == name


@pytest.fixture(scope="module")
def both(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a decoder of INT4 weights first, and the full INT8 variant after it."""
    path = tmp_path_factory.mktemp("both") / "reference.bundle"
    shutil.copytree(calibrated.root, path)
    usual = QuantizeOptions(precision="int8", targets=("cpu",), method="max", threads=1)
    quantize(path, msgspec.structs.replace(usual, decoder="weight-int4"))
    quantize(path, usual)
    return Bundle.open(path)


FULL, WEIGHTS = "int8-u8-fp32", "int8-u8-fp32-decoder-w4"


def test_both_stay_with_files_of_their_own(both: Bundle) -> None:
    assert list(both.manifest.variants) == ["fp32", WEIGHTS, FULL]
    assert all(row.passed for row in both.verify())
    files = {name: {file.path for file in both.variant(name).files()} for name in (FULL, WEIGHTS)}
    assert not files[FULL] & files[WEIGHTS]
    for name in (FULL, WEIGHTS):
        report = both.report_path(name)
        assert report is not None
        assert msgspec.json.decode(report.read_bytes(), type=VariantReport).variant == name
    assert both.variant(WEIGHTS).weight_only == {DECODER: "int4"}
    assert not both.variant(WEIGHTS).is_usual
    assert both.variant(FULL).is_usual


def test_the_precision_means_the_full_one_and_each_name_its_own(both: Bundle) -> None:
    for name, chosen in (("int8", FULL), (FULL, FULL), (WEIGHTS, WEIGHTS)):
        assert choose_variant(both.manifest, name, ORT) == chosen
    alone = {name: spec for name, spec in both.manifest.variants.items() if name != FULL}
    assert choose_variant(msgspec.structs.replace(both.manifest, variants=alone), "int8", ORT) == WEIGHTS


def test_each_answers_by_its_name(both: Bundle) -> None:
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    for name in (FULL, WEIGHTS):
        with Pipeline.load(both.root, precision=name, backend=ORT, threads=1) as pipeline:
            assert pipeline.variant == name
            assert pipeline.answer(picture, "what color is it?").text


def test_engines_are_built_of_the_one_that_is_named(calibrated: Bundle) -> None:
    """In the numerics of TensorRT; no engine is built."""
    usual = calibrated.variant("fp32")
    made = {
        "int8-s8-fp16-decoder-w4": {"weight_only": {DECODER: "int4"}},
        "int8-s8-fp16": {"weight_only": {}, "high_graphs": []},
    }
    variants = {
        name: msgspec.structs.replace(usual, precision="int8", numerics="s8-fp16", recipe=recipe)
        for name, recipe in made.items()
    }
    bundle = Bundle(calibrated.root, msgspec.structs.replace(calibrated.manifest, variants=variants), check=False)
    for given, chosen in (("int8", "int8-s8-fp16"), (None, "int8-s8-fp16"), *((name, name) for name in made)):
        assert choose_buildable(bundle, BuildOptions(target="rtx", precision=given)) == chosen


def test_without_calibration_nothing_else_is_quantised_and_the_name_says_so(
    reference_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(reference_bundle, tmp_path / "reference.bundle"))
    made = quantize(path, QuantizeOptions(precision="int8", targets=("cpu",), decoder="weight-int8")).variants[0]
    assert made.name == "int8-u8-fp32-decoder-w8-only"
    assert made.spec.weight_only == {DECODER: "int8"}
    assert set(made.spec.high_graphs) == set(made.spec.graphs) - {DECODER}
    assert made.report is not None
    assert {row.reason for row in made.report.kept_high} == {"vocabulary head", "calibration did not observe its input"}


def test_taking_the_place_of_another_recipe_is_said(both: Bundle, tmp_path: Path) -> None:
    path = Path(shutil.copytree(both.root, tmp_path / "reference.bundle"))
    options = QuantizeOptions(precision="int8", targets=("cpu",), method="mse", smooth=False, threads=1)
    said = "int8-u8-fp32 was there already, made with method max (now mse), smooth True (now False): it was replaced."
    assert said in quantize(path, options).warnings
    assert not any("replaced" in line for line in quantize(path, options).warnings)
    assert Bundle.open(path).variant(WEIGHTS) == both.variant(WEIGHTS)
