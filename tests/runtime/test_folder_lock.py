"""The lock that writers take for their renames: exclusive, gone with its process, and never in the way for long."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevqa.runtime import folder_lock as module
from edgevqa.runtime.folder_lock import folder_lock

HOLDER = """
import sys, time
from pathlib import Path
from edgevqa.runtime.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.05)


@pytest.mark.usefixtures("short_wait")
def test_it_is_exclusive_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with folder_lock(tmp_path) as held:
                assert not held, "another process holds it: after the longest wait the work goes on without"
        finally:
            holder.kill()
    with folder_lock(tmp_path) as held:
        assert held
    assert list(tmp_path.iterdir()) == [], "a lock leaves no file"


def test_it_is_waited_for(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_WAIT_S", 0.3)
        started = time.monotonic()
        with folder_lock(tmp_path) as held:
            assert not held
        assert time.monotonic() - started >= 0.3


def test_without_such_locks_it_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    started = time.monotonic()
    with folder_lock(tmp_path) as held:
        assert not held
    with folder_lock(tmp_path / "nowhere") as held:
        assert not held
    assert time.monotonic() - started < 1


def test_an_error_within_passes_and_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"), folder_lock(tmp_path):
        raise ValueError("within")
    with folder_lock(tmp_path) as held:
        assert held
