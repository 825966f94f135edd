from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Invoke = Callable[..., tuple[int, str, str]]
Exported = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(golden_bundle: Exported, tmp_path: Path) -> Path:
    """A bundle of one's own, in a folder with nothing else."""
    folder = tmp_path / "there"
    folder.mkdir()
    return Path(shutil.copytree(golden_bundle("late"), folder / "vqa.bundle"))


def noise_folder(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "questions.txt").write_text("what is this?\n")
    return folder


def state(folder: Path) -> dict[str, bytes]:
    return {found.relative_to(folder).as_posix(): found.read_bytes() for found in folder.rglob("*") if found.is_file()}


def test_the_table_the_warning_and_what_comes_next(invoke: Invoke, path: Path) -> None:
    code, out, err = invoke("calibrate", path, "--data", "scenes:3:12", "--samples", 12, "--threads", 1)
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert {"vision_trunk", "vision_fusion", "language_decoder"} <= rows.keys()
    columns = ("graph", "runs", "Linear inputs", "residual streams", "float tensors", "largest |x|", "in tensor")
    assert " ".join(out.split("\n")[1].split()) == " ".join(columns)
    assert rows["vision_trunk"][1] == "3"  # runs: once a picture
    assert rows["language_encoder"][1] == "12"
    assert "12 questions about 3 pictures of scenes:3:12, in " in out
    assert "warning: 12 samples are few" in err
    assert "observe" in err
    assert "edgevqa quantize" in err
    code, out, _ = invoke("bundle", "verify", path)
    assert code == 0
    assert "calibration/observations.npz" in out


def test_json_stands_alone_on_standard_output(invoke: Invoke, path: Path) -> None:
    args = ("--data", ROOT / "export" / "pictures", "--samples", 10, "--method", "percentile-99.99", "--threads", 1)
    code, out, err = invoke("calibrate", path, *args, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["bundle"] == str(path)
    summary = found["calibration"]
    assert (summary["samples"], summary["method"], summary["dataset"]) == (10, "percentile-99.99", "pictures")
    assert summary["tensors"][0]["ranges"]["mse"]["symmetric"][0] < 0
    assert summary == json.loads((path / "calibration" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["{bundle}", "--data", "scenes:3:0"], 2, ["scenes:3:0"]),
        (["{bundle}", "--data", "{absent}"], 2, ["absent", "Known forms"]),
        (["{bundle}"], 2, ["--data"]),
        (["{absent}", "--data", "scenes:3:12"], 2, ["absent"]),
        (["{bundle}", "--data", "scenes:3:12", "--samples", "0"], 2, ["samples is 0"]),
        (["{bundle}", "--data", "scenes:3:12", "--seed", "-1"], 2, ["seed is -1"]),
        (["{bundle}", "--data", "scenes:3:12", "--method", "minmax"], 2, ["minmax", "auto, max", "entropy"]),
        (["{bundle}", "--data", "{noise}"], 2, ["12 of 12 pictures", "random noise", "Calibrate with pictures"]),
        (["{bundle}", "--data", "scenes:3:4"], 2, ["one and the same picture"]),
    ],
    ids=[
        "no question",
        "no data set",
        "no --data",
        "no bundle",
        "no samples",
        "seed",
        "method",
        "noise",
        "one picture",
    ],
)
def test_mistakes(invoke: Invoke, path: Path, tmp_path: Path, args: list[str], code: int, said: list[str]) -> None:
    noise = noise_folder(tmp_path / "noise")
    before = state(path.parent)
    given = [arg.format(bundle=path, absent=tmp_path / "absent", noise=noise) for arg in args]
    found, out, err = invoke("calibrate", *given)
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert all(word in err for word in said), err
    assert state(path.parent) == before


def test_ctrl_c_leaves_the_bundle_as_it_was_and_nothing_else(path: Path) -> None:
    before = state(path.parent)
    args = ["calibrate", str(path), "--data", "scenes:3:2000", "--samples", "2000", "--threads", "1"]
    command = [sys.executable, "-c", "from edgevqa.cli.main import main; main()", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "observe" in line:
                break
        assert len(list(path.parent.iterdir())) == 2  # the tapped graphs
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert state(path.parent) == before
    assert [found.name for found in path.parent.iterdir()] == ["vqa.bundle"]
