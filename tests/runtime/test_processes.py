"""What is known of child processes: how they ended, what memory is left, and that they end with their parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevqa.runtime.processes import ending_text, free_mb, signal_name

CHILD = "import sys, time; from edgevqa.runtime.processes import end_with_parent; end_with_parent(int(sys.argv[1])); "
AT_WORK = f"{CHILD} print('at work', flush=True); time.sleep(60)"
PARENT = (
    "import os, subprocess, sys, time; made = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], "
    "stdout=subprocess.PIPE, start_new_session=True); made.stdout.readline(); print(made.pid, flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("code", "text"),
    [(3, "ended with exit code 3"), (-11, "was ended by SIGSEGV"), (-9, "was ended by SIGKILL"), (-99, "by signal 99")],
)
def test_an_ending_names_the_signal(code: int, text: str) -> None:
    assert text in ending_text(code)
    assert signal_name(signal.SIGABRT) == "SIGABRT"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone kills a child with its parent")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, AT_WORK], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _is_there(child)
        parent.kill()
        until = time.monotonic() + 10
        while _is_there(child) and time.monotonic() < until:
            time.sleep(0.02)
        assert not _is_there(child)


def test_a_child_whose_parent_is_gone_already_leaves() -> None:
    with pytest.raises(SystemExit) as caught:
        end_with_parent_of_another()
    assert caught.value.code == 129


def end_with_parent_of_another() -> None:
    """In a process of its own, for it would be told to end with the test runner's parent."""
    done = subprocess.run([sys.executable, "-c", CHILD, "999999999"], check=False, timeout=60)
    raise SystemExit(done.returncode)


def _is_there(pid: int) -> bool:
    """Whether a process is there and not dead: one that nobody waits for is listed on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_free_memory_is_what_the_system_or_the_control_group_leaves(tmp_path: Path) -> None:
    assert free_mb(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    assert free_mb(tmp_path) == pytest.approx(8192)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("3000000\n")
    assert free_mb(tmp_path) == pytest.approx(8192)
    (group / "memory.max").write_text("1003000000\n")
    assert free_mb(tmp_path) == pytest.approx(1000)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_the_machine_at_hand_tells() -> None:
    assert (free_mb() or 0) > 0
