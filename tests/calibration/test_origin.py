"""What a variant remembers of its calibration, and what becomes of engines when it or its bundle changes."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec
import onnx
import pytest

from edgevqa.calibration import QuantizeOptions, quantize
from edgevqa.calibration.observation.run import Calibrated, CalibrateOptions, calibrate
from edgevqa.calibration.observation.statistics import load_statistics, origin
from edgevqa.calibration.quantization.run import Quantized
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, encode_record
from edgevqa.runtime.manifest import CalibrationSpec, EngineSet
from tests.runtime.pipelines.wordless_toys import write_classifier

INT8 = "int8-u8-fp32"
KEY = f"server-trt10/{INT8}"
PLAN = f"engines/{KEY}/classifier.engine"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The toy classifier, with the types that casting wants of every value."""
    path = write_classifier(tmp_path / "toy")
    bundle = Bundle.open(path)
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.graph_path("fp32", "classifier")))
    with BundleWriter.extend(bundle) as writer:
        file = writer.add_bytes(model.SerializeToString(), "graphs/fp32/classifier.onnx")
        spec = bundle.variant("fp32")
        graph = msgspec.structs.replace(spec.graphs["classifier"], file=file)
        variants = {"fp32": msgspec.structs.replace(spec, graphs={"classifier": graph})}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    return path


def observe(path: Path, seed: int) -> Calibrated:
    return calibrate(path, CalibrateOptions(data=f"scenes:{seed}:64", samples=8, threads=1))


def calibration(bundle: Bundle) -> CalibrationSpec:
    assert bundle.manifest.calibration is not None
    return bundle.manifest.calibration


def to_int8(path: Path) -> Quantized:
    return quantize(path, QuantizeOptions(precision="int8", targets=("cpu",), threads=1))


def add_engine(path: Path, onnx_sha256: str) -> None:
    """As `edgevqa build` does, of a graph with this hash."""
    bundle = Bundle.open(path)
    weights = bundle.variant(INT8).weights
    with BundleWriter.extend(bundle) as writer:
        file = writer.add_bytes(b"ftrt" + bytes(200), PLAN)
        engine = GraphEngine(
            file="classifier.engine",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            onnx_sha256=onnx_sha256,
            weights_sha256=None if weights is None else weights.sha256,
            profiles=[],
            inputs=[],
            outputs=[],
            high_layers=[],
            seconds=1.0,
            peak_memory_mb=1.0,
        )
        record = EngineRecord(
            format=FORMAT,
            target="server-trt10",
            variant=INT8,
            precision="int8",
            numerics="u8-fp32",
            flavour="tensorrt",
            tensorrt_version=(10, 3, 0, 30),
            os=platform.system().lower(),
            arch=platform.machine(),
            device=None,
            compute_capabilities=[],
            hardware_compatibility="none",
            version_compatible=False,
            weight_stripped=False,
            refittable=False,
            dla_core=None,
            driver=None,
            jetpack=None,
            l4t=None,
            calibration_sha256=None,
            options={},
            graphs={"classifier": engine},
        )
        entry = EngineSet(
            target=record.target,
            variant=INT8,
            record=writer.add_bytes(encode_record(record), f"engines/{KEY}/engine.json"),
            engines={"classifier": file},
        )
        writer.finish(msgspec.structs.replace(bundle.manifest, engines={KEY: entry}))


def test_a_variant_remembers_the_set_that_its_numbers_come_from(path: Path) -> None:
    first = calibration(observe(path, 3).bundle).sha256
    to_int8(path)
    quantize(path, QuantizeOptions(precision="fp16", targets=("cpu",), threads=1))
    second = calibration(observe(path, 4).bundle).sha256
    assert first != second
    bundle = Bundle.open(path)
    assert {name: spec.calibration_sha256 for name, spec in bundle.manifest.variants.items()} == {
        "fp32": None,
        INT8: first,
        "fp16": first,
    }
    again = to_int8(path)
    assert again.variants[0].spec.calibration_sha256 == second
    told = f"made with the calibration set {first[:12]} (now {second[:12]})"
    assert any(told in warning for warning in again.warnings)


def test_what_was_made_without_a_calibration_remembers_none(path: Path) -> None:
    bundle = observe(path, 3).bundle
    assert origin(bundle, {}) == {"source": "fp32"}
    assert origin(bundle, load_statistics(bundle)) == {
        "source": "fp32",
        "calibration_sha256": calibration(bundle).sha256,
    }


def test_engines_of_what_was_replaced_are_told(path: Path) -> None:
    observe(path, 3)
    made = to_int8(path).variants[0].spec
    add_engine(path, made.graphs["classifier"].file.sha256)
    assert not any("engines" in warning for warning in to_int8(path).warnings), "the same numbers again"
    add_engine(path, "1" * 64)
    fp16 = quantize(path, QuantizeOptions(precision="fp16", targets=("cpu",), threads=1))
    assert not any("engines" in warning for warning in fp16.warnings), "another variant was made"
    (told,) = [warning for warning in to_int8(path).warnings if "engines" in warning]
    assert told.startswith(
        f"The engines for server-trt10 were built from other graphs or weights than variant '{INT8}'"
    )
    assert told.endswith(f"edgevqa build {path} --target server-trt10 --precision {INT8}")


def test_what_calibrate_and_quantize_leave_out_is_told(path: Path) -> None:
    observe(path, 3)
    made = to_int8(path).variants[0].spec.graphs["classifier"].file.sha256
    add_engine(path, made)
    (path / PLAN).unlink()
    done = observe(path, 4)
    (told,) = done.left_out
    assert told.startswith(f"Left out: The engines '{KEY}' of {path} are damaged: {path / PLAN} is missing")
    assert told.endswith(f"edgevqa build {path} --target server-trt10 --precision {INT8}")
    assert not (path / f"engines/{KEY}").exists()
    assert observe(path, 4).left_out == []
    add_engine(path, made)
    (path / PLAN).unlink()
    assert told in to_int8(path).warnings
