"""`edgevqa build` with TensorRT-RTX, and `edgevqa inspect` of what it made."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.runtime.plans import read_header

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.tensorrt
Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle_path(reference_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))


def test_the_command_prints_a_table_and_inspect_reads_the_plan(invoke: Invoke, bundle_path: Path) -> None:
    code, out, err = invoke("build", bundle_path, "--target", "rtx", "--batch", "1")
    assert code == 0, err
    assert "language_decoder" in out
    plan = bundle_path / "engines/rtx/fp32/projector.engine"
    code, out, err = invoke("inspect", plan)
    assert (code, err) == (0, "")
    assert "tensorrt-rtx" in out
    assert "as recorded" in out
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    assert "DIFFERS" in invoke("inspect", plan)[1]


def test_every_plan_tells_its_size_so_that_one_that_was_cut_off_is_refused(
    invoke: Invoke, bundle_path: Path, tmp_path: Path
) -> None:
    """Copied without its engine.json: only its header can tell."""
    code, _, err = invoke("build", bundle_path, "--target", "rtx", "--batch", "1")
    assert code == 0, err
    plans = sorted((bundle_path / "engines/rtx/fp32").glob("*.engine"))
    assert len(plans) == 6
    for plan in plans:
        assert read_header(plan).size_bytes == plan.stat().st_size
    alone = tmp_path / "alone.engine"
    alone.write_bytes(plans[0].read_bytes())
    assert invoke("inspect", alone)[0] == 0
    alone.write_bytes(plans[0].read_bytes()[:-1000])
    for given in ((), ("--json",)):
        code, out, err = invoke("inspect", alone, *given)
        assert (code, out) == (2, "")
        assert f"{alone} has " in err
        assert "it was cut off" in err


def test_ctrl_c_leaves_nothing_behind(bundle_path: Path) -> None:
    command = [sys.executable, "-m", "edgevqa.cli.main", "build", str(bundle_path), "--target", "rtx"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Building:" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    time.sleep(0.2)
    assert [path.name for path in bundle_path.parent.iterdir()] == ["bundle"]
