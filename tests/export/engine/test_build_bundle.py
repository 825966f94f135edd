"""A build and the bundle around it: its calibration, its cache, its other engines, and other builds at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgevqa.export.engine.build import build
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import load_record
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.manifest import CalibrationSpec, VariantSpec
from tests.runtime.pipelines.wordless_toys import write_classifier

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.tensorrt
RTX = BuildOptions(target="rtx", batch=(1,))
COPY = "fp32-copy"
SETS = {"first": "a" * 64, "second": "b" * 64}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The toy classifier, with a second variant that was made with another calibration than the bundle has."""
    path = write_classifier(tmp_path / "toy")
    bundle = Bundle.open(path)
    usual = bundle.variant("fp32").graphs["classifier"]
    with BundleWriter.extend(bundle) as writer:
        file = writer.add_file(path / usual.file.path, f"graphs/{COPY}/classifier.onnx")
        copy = VariantSpec(
            precision="fp32",
            numerics="fp32",
            weights=None,
            graphs={"classifier": msgspec.structs.replace(usual, file=file)},
            recipe={"source": "fp32", "calibration_sha256": SETS["first"]},
        )
        calibration = CalibrationSpec(
            variant="fp32",
            dataset="scenes",
            seed=0,
            samples=1,
            sha256=SETS["second"],
            question_ids=[],
            warnings=[],
            summary=writer.add_bytes(b"{}", "calibration/summary.json"),
            observations=writer.add_bytes(b"", "calibration/observations.npz"),
        )
        variants = {**bundle.manifest.variants, COPY: copy}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants, calibration=calibration))
    return path


def test_the_record_names_the_calibration_of_the_variant(path: Path) -> None:
    options = msgspec.structs.replace(RTX, precision=COPY)
    assert build(path, options).record.calibration_sha256 == SETS["first"]
    assert build(path, msgspec.structs.replace(RTX, precision="fp32")).record.calibration_sha256 is None


def test_a_cache_that_cannot_be_written_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", "/proc/nope")
    built = build(path, RTX)
    (told,) = built.warnings["cache"]
    assert "/proc/nope/engines: No such file or directory" in told
    assert set(load_record(Bundle.open(path), built.key).graphs) == {"classifier"}


@pytest.mark.parametrize("precision", ["fp32", COPY])
def test_damaged_engines_are_built_again_and_others_are_told(path: Path, precision: str) -> None:
    build(path, msgspec.structs.replace(RTX, precision="fp32"))
    engine = path / "engines/rtx/fp32/classifier.engine"
    data = engine.read_bytes()
    engine.unlink()
    engine.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    built = build(path, msgspec.structs.replace(RTX, precision=precision))
    told = built.warnings.get("other engines", [])
    if precision == "fp32":
        assert told == []
        assert all(report.passed for report in Bundle.open(path).verify())
    else:
        assert told[0].startswith(f"Left out: The engines 'rtx/fp32' of {path} are damaged: {engine} has SHA-256")
        assert told[0].endswith(f"edgevqa build {path} --target rtx --precision fp32")
        assert list(Bundle.open(path).manifest.engines) == [f"rtx/{COPY}"]


def test_of_two_builds_at_once_the_later_is_refused_and_its_engines_are_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    begun: list[str] = []

    def other_build(what: str, done: int, total: int) -> None:
        if not begun:
            begun.append(what)
            build(path, msgspec.structs.replace(RTX, precision=COPY))

    options = msgspec.structs.replace(RTX, precision="fp32")
    with pytest.raises(BundleError, match="was changed by another process meanwhile"):
        build(path, options, report=other_build)
    assert list(Bundle.open(path).manifest.engines) == [f"rtx/{COPY}"]
    assert build(path, options).reused == ["classifier"]
    assert sorted(Bundle.open(path).manifest.engines) == ["rtx/fp32", f"rtx/{COPY}"]
