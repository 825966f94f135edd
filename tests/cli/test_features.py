"""`edgevqa features` on small masked autoencoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevqa.export import ExportOptions, export
from edgevqa.runtime.pipeline import Pipeline
from tests.families import test_vit_mae as mae
from tests.families.contract import picture

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "checkpoint"
    folder.mkdir()
    mae.TestMaeForPreTraining.make(folder)
    path = folder.parent / "bundle"
    export(str(folder), path, ExportOptions(verify=False))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(picture(40, 60)).save(path)
    return path


def test_arrays_are_written(invoke: Invoke, bundle: Path, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.npz"
    code, out, err = invoke("features", bundle, image, "-o", file, "--backend", "onnxruntime")
    assert (code, err) == (0, "")
    assert "last_hidden_state" in out
    assert f"{1 + mae.PATCHES} x 32" in out
    with Pipeline.load(bundle, backend="onnxruntime") as pipeline:
        expected = pipeline.features(image)
    with np.load(file) as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_picture_is_restored(invoke: Invoke, bundle: Path, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "restored.png"
    settings = ("--mask-ratio", 0.5, "--seed", 3, "--backend", "onnxruntime")
    code, out, err = invoke("features", bundle, image, "--reconstruct", file, *settings, "--json")
    assert (code, err) == (0, "")
    with Pipeline.load(bundle, backend="onnxruntime") as pipeline:
        expected = pipeline.reconstruct(image, mask_ratio=0.5, seed=3)
    assert json.loads(out) == {
        "features": None,
        "reconstruction": {"file": str(file), "loss": pytest.approx(expected.loss), "masked": 0.5},
    }
    found = np.asarray(Image.open(file))
    assert found.shape == (mae.SIZE, 3 * mae.SIZE, 3)
    np.testing.assert_array_equal(found[:, mae.SIZE : 2 * mae.SIZE], expected.picture)
    text = invoke("features", bundle, image, "--reconstruct", file, *settings)[1]
    assert f"restored.png: 50% of the patches left out and predicted; mean squared error {expected.loss:.4f}" in text


def test_missing_folders_are_made(invoke: Invoke, bundle: Path, image: Path, tmp_path: Path) -> None:
    files = tmp_path / "a" / "b" / "features.npz", tmp_path / "c" / "restored.png"
    code, _, err = invoke("features", bundle, image, "-o", files[0], "--reconstruct", files[1])
    assert (code, err) == (0, "")
    assert all(file.is_file() for file in files)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a place that takes no files")
@pytest.mark.parametrize("args", [("-o", "/proc/features.npz"), ("--reconstruct", "/proc/restored.png")])
def test_a_place_that_takes_no_files_is_told(
    invoke: Invoke, bundle: Path, image: Path, args: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_bundle", None)  # said before anything is loaded
    code, out, err = invoke("features", bundle, image, *args)
    assert (code, out) == (2, "")
    assert f"{args[1]} cannot be written" in err
    assert "Give an output that you may write to." in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "There is nothing to write: give -o FILE"),
        (("-o", "features.npz", "--mask-ratio", 0.5), "--mask-ratio goes with --reconstruct"),
        (("--reconstruct", "restored.jpg"), "give the name of a .png file"),
        (("--reconstruct", "picture.png/restored.png"), "Give an output that you may write to"),
        (("-o", "picture.png/features.npz"), "Give an output that you may write to"),
        (("--reconstruct", "restored.png", "--mask-ratio", 1), "The mask ratio is 1.0; expected 0.063 to 0.937"),
        (("--reconstruct", "restored.png", "--seed", -1), "The seed is -1; expected a whole number of at least 0"),
    ],
)
def test_mistakes(
    invoke: Invoke,
    bundle: Path,
    image: Path,
    args: tuple[object, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke("features", bundle, image, *args)
    assert (code, out) == (2, "")
    assert message in err
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
