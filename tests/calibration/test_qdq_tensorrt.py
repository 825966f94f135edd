"""TensorRT-RTX parses and builds what we write, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.quantizer import Quantizer
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import Numerics

trt: Any = pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.tensorrt, pytest.mark.slow]

SIZES = (1, 4, 8)  # of every dynamic axis: least, usual, most


@pytest.mark.parametrize("numerics", ["s8-fp16", "s8-fp32", "fp8-fp16"])
def test_every_graph_is_built(calibrated: Bundle, numerics: Numerics, tmp_path: Path) -> None:
    check_builds(calibrated, Recipe(numerics=numerics, method="max"), tmp_path)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_weights_in_blocks_are_built(calibrated: Bundle, bits: Any, tmp_path: Path) -> None:
    recipe = Recipe(numerics="s8-fp16", method="max", weight_only={"language_decoder": bits})
    check_builds(calibrated, recipe, tmp_path, graphs=["language_decoder"])


def test_corrected_biases_and_residual_adds_are_built(calibrated: Bundle, tmp_path: Path) -> None:
    recipe = Recipe(numerics="s8-fp16", method="max", bias_correction=True, residual=True)
    check_builds(calibrated, recipe, tmp_path, graphs=["vision_trunk", "language_encoder"])


def check_builds(calibrated: Bundle, recipe: Recipe, folder: Path, graphs: list[str] | None = None) -> None:
    quantizer = Quantizer(calibrated, load_statistics(calibrated), recipe)
    with SharedWeights(folder / "weights.data") as weights:
        for name in graphs or quantizer.graphs:
            path = folder / f"{name}.onnx"
            assert quantizer.write_graph(weights, path, name).quantised
            assert build(path) > 0, name


def build(path: Path) -> int:
    """Bytes of the plan for compute capability 8.9. Fails with what the parser says."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        pytest.fail("; ".join(parser.get_error(number).desc() for number in range(parser.num_errors)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tensor.shape:
            shapes = [[size if axis < 0 else axis for axis in tensor.shape] for size in SIZES]
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    return 0 if plan is None else int(plan.nbytes)
