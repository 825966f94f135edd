"""Ctrl-C while the command line is still being imported: no traceback, 130."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLD = "importing\n"

# Watches imports; then come the lines of the script that pip makes of the entry point.
SCRIPT = """
import os, signal, sys, time, types

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "edgevqa.cli.main":
            os.write(1, b"importing\\n")
        if name == os.environ.get("INTERRUPTED_IMPORT"):
            os.kill(os.getpid(), signal.SIGINT)

def doctor() -> None:
    "Take a minute."
    time.sleep(60)

sys.modules["edgevqa.cli.doctor"] = module = types.ModuleType("edgevqa.cli.doctor")
module.doctor = doctor
sys.meta_path.insert(0, Watcher())
{setting}
from {module} import {function}
sys.exit({function}())
"""


def start(setting: str = "", stderr: int = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
    """`edgevqa doctor` in a process of its own, as the installed script runs it; the command takes a minute."""
    found = re.search(r'^edgevqa = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(setting=setting, module=found[1], function=found[2]), "doctor"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_interrupted_import_is_130_where_nothing_can_be_written() -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(stderr=full.fileno(), INTERRUPTED_IMPORT="edgevqa.cli.main")
        process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize("name", ["edgevqa.cli.main", "typer", "typer.core", "edgevqa.runtime.errors"])
def test_an_interrupted_import_ends_quietly(name: str) -> None:
    process = start(INTERRUPTED_IMPORT=name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, TOLD, "\nInterrupted.\n")


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6])
def test_ctrl_c_at_any_moment_ends_quietly(delay_s: float) -> None:
    process = start()
    assert process.stdout is not None
    assert process.stdout.readline() == TOLD
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "\nInterrupted.\n")


def test_an_ignored_signal_stays_ignored() -> None:
    """As of a job that a shell put into the background."""
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)", INTERRUPTED_IMPORT="typer")
    assert process.stdout is not None
    assert process.stdout.readline() == TOLD
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    process.kill()
    process.communicate()
