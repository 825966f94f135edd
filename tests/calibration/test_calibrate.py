from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.ranges import METHODS
from edgevqa.calibration.observation.resume import FOLDER
from edgevqa.calibration.observation.run import CalibrateOptions, calibrate
from edgevqa.calibration.observation.statistics import (
    GraphStatistics,
    TensorStatistics,
    load_statistics,
    save_statistics,
)
from edgevqa.calibration.observation.summary import read_summary
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, ConfigError, InputError
from edgevqa.runtime.paths import cache_dir

Exported = Callable[[str], Path]


@pytest.fixture
def path(golden_bundle: Exported, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(golden_bundle("late"), tmp_path / "vqa.bundle"))


def options(**changed: object) -> CalibrateOptions:
    return CalibrateOptions(**{"data": "scenes:3:24", "samples": 24, "threads": 1, **changed})  # type: ignore[arg-type]


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_calibration_is_added_and_nothing_else_changes(path: Path) -> None:
    before = contents(path)
    steps: list[tuple[str, int, int]] = []
    done = calibrate(path, options(), report=lambda *step: steps.append(step))
    after = contents(path)
    new = {"calibration/observations.npz", "calibration/summary.json"}
    assert after.keys() == before.keys() | new
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "manifest.sha256"}
    spec = Bundle.open(path).manifest.calibration
    assert spec is not None
    assert (spec.variant, spec.dataset, spec.seed, spec.samples) == ("fp32", "scenes:3:24", 0, 24)
    assert sorted(spec.question_ids, key=int) == [str(number) for number in range(24)]
    assert any("24 samples are few" in warning for warning in spec.warnings)
    assert [step for step in steps if step[0] == "observe"] == [("observe", n, 24) for n in range(1, 25)]
    assert done.summary == read_summary(Bundle.open(path))
    assert not list((cache_dir() / FOLDER).glob("*"))  # what was kept for resuming
    assert [found.name for found in path.parent.iterdir()] == ["vqa.bundle"]


def test_statistics_are_read_as_they_were_observed(path: Path) -> None:
    done = calibrate(path, options())
    statistics = load_statistics(Bundle.open(path))
    assert statistics.keys() == done.bundle.variant("fp32").graphs.keys()
    linears = {name: find_linears(ir.load(done.bundle.graph_path("fp32", name)).graph) for name in statistics}
    named = {layer for summary in done.summary.tensors for layer in summary.layers}
    assert named == {f"{graph}/{linear}" for graph, found in linears.items() for linear in found}
    for summary in done.summary.tensors:
        tensor = statistics[summary.graph].inputs[summary.tensor]
        assert (tensor.low, tensor.high, tensor.row_count) == (summary.low, summary.high, summary.rows)
        assert len(tensor.counts) % 2 == 0
        assert -tensor.limit < tensor.low <= tensor.high < tensor.limit
        assert np.abs(tensor.rows).max(axis=0).shape == tensor.channel_absmax.shape
        assert (np.abs(tensor.rows) <= tensor.channel_absmax * (1 + 2e-3) + 1e-9).all()
        assert summary.ranges.keys() == set(METHODS)


def test_the_same_call_gives_the_same_files(golden_bundle: Exported, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        path = Path(shutil.copytree(golden_bundle("late"), tmp_path / name))
        calibrate(path, options())
        files = contents(path)
        found.append((files["calibration/observations.npz"], files["calibration/summary.json"]))
    assert found[0] == found[1]


def test_calibrating_again_replaces_and_variants_stay(path: Path) -> None:
    bundle = Bundle.open(path)
    with BundleWriter.extend(bundle) as writer:
        other = msgspec.structs.replace(bundle.variant("fp32"), precision="fp16", numerics="fp16")
        writer.finish(msgspec.structs.replace(bundle.manifest, variants={**bundle.manifest.variants, "fp16": other}))
    calibrate(path, options())
    first = contents(path)
    again = calibrate(path, options(seed=1, samples=20, method="mse"))
    second = contents(path)
    assert first.keys() == second.keys()
    assert first["calibration/observations.npz"] != second["calibration/observations.npz"]
    spec = again.bundle.manifest.calibration
    assert spec is not None
    assert (spec.seed, spec.samples, again.summary.method) == (1, 20, "mse")
    assert list(again.bundle.manifest.variants) == ["fp32", "fp16"]
    assert json.loads(second["calibration/summary.json"])["method"] == "mse"


def test_a_folder_of_pictures_and_questions_without_answers_will_do(path: Path, tmp_path: Path) -> None:
    pictures = Path(__file__).parents[2] / "export" / "pictures"
    folder = tmp_path / "mine"
    folder.mkdir()
    for picture in pictures.glob("*.png"):
        shutil.copy(picture, folder)
    (folder / "questions.txt").write_text("what is in the picture?\nwhat color is it?\n")
    done = calibrate(path, options(data=str(folder), samples=12))
    spec = done.bundle.manifest.calibration
    assert spec is not None
    assert spec.dataset == "mine"  # no path of this machine
    assert str(tmp_path) not in (path / "manifest.json").read_text() + (path / "calibration/summary.json").read_text()
    assert spec.samples == 12


def test_a_bundle_without_or_with_a_foreign_calibration_says_what_to_do(path: Path) -> None:
    with pytest.raises(InputError, match="edgevqa calibrate"):
        load_statistics(Bundle.open(path))
    bundle = calibrate(path, options()).bundle
    spec = bundle.manifest.calibration
    assert spec is not None
    statistics = load_statistics(bundle)
    for name, write, error in (
        ("other float32 graphs", lambda file: save_statistics(file, statistics, fingerprint="0" * 64), InputError),
        ("damaged", lambda file: file.write_bytes(b"PK\x03\x04 and no more"), BundleError),
    ):
        with BundleWriter.extend(bundle) as writer:
            write(writer.path(spec.observations.path))
            changed = msgspec.structs.replace(spec, observations=writer.describe(spec.observations.path))
            bundle = writer.finish(msgspec.structs.replace(bundle.manifest, calibration=changed))
        with pytest.raises(error, match=f"{name}.*edgevqa calibrate"):
            load_statistics(bundle)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e5, 1e38])
def test_rows_of_any_size_survive_the_file(tmp_path: Path, size: float) -> None:
    """float16 with a power of two: eleven bits of every number that is not tiny beside the largest."""
    rows = (np.random.default_rng(0).normal(size=(128, 32)) * size / 8).astype(np.float32)
    tensor = TensorStatistics(
        low=float(rows.min()),
        high=float(rows.max()),
        limit=size,
        counts=np.arange(8),
        channel_absmax=np.abs(rows).max(axis=0),
        channel_mean=rows.mean(axis=0, dtype=np.float64).astype(np.float32),
        rows=rows,
        row_count=4096,
    )
    from edgevqa.calibration.observation import statistics as module

    file = tmp_path / "observations.npz"
    save_statistics(file, {"graph": GraphStatistics(inputs={"x": tensor}, absmax={"x": size})}, fingerprint="f")
    with np.load(file, allow_pickle=False) as arrays:
        meta = msgspec.json.decode(arrays["meta"].tobytes(), type=module._Meta)  # pyright: ignore[reportPrivateUsage]
        found = module._unpack(meta.graphs["graph"].inputs["x"], arrays)  # pyright: ignore[reportPrivateUsage]
    assert np.allclose(found.rows, rows, rtol=2.0**-11, atol=size * 1e-7)
    assert (found.low, found.high, found.limit, found.row_count) == (tensor.low, tensor.high, size, 4096)
    assert np.array_equal(found.channel_mean, tensor.channel_mean)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"samples": 0}, "samples is 0"), ({"seed": -1}, "seed is -1"), ({"method": "minmax"}, "minmax.*auto, max")],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options(**changed)
