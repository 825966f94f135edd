"""Our own quantiser, used as its users do: calibrate a bundle, then add variants to it."""

from __future__ import annotations

from pathlib import Path

from edgevqa.calibration.observation.run import CalibrateOptions, calibrate
from edgevqa.calibration.quantization.run import QuantizeOptions, quantize
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset

TARGETS = {"u8-fp32": "cpu", "s8-fp32": "openvino", "s8-fp16": "server-trt10"}
"""A target that takes each form of INT8."""


def calibrate_bundle(path: Path, *, data: str, samples: int, seed: int) -> list[Sample]:
    """Calibrate the bundle and give the samples that were used, in their order."""
    made = calibrate(path, CalibrateOptions(data=data, samples=samples, seed=seed))
    spec = made.bundle.manifest.calibration
    if spec is None:
        raise RuntimeError(f"{path} has no calibration after calibrating.")
    by_id = {sample.question_id: sample for sample in open_dataset(data)}
    return [by_id[name] for name in spec.question_ids]


def add(path: Path, options: QuantizeOptions, numerics: str) -> str:
    """Quantise the bundle; the name of the variant in `numerics` that was added, where several were."""
    made = quantize(path, options).variants
    names = [variant.name for variant in made if variant.spec.numerics == numerics]
    if not names:
        raise RuntimeError(f"Quantising gave no variant in {numerics}, but {', '.join(each.name for each in made)}.")
    return names[0]
