"""What is known of child processes: how they ended, whether for memory, and that they end with their parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevqa.runtime.processes import ORPHANED, ending_text, memory_kills, signal_name

CHILD = "import sys, time; from edgevqa.runtime.processes import end_with_parent; end_with_parent(); "
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


def test_a_child_leaves_when_its_input_ends() -> None:
    """Behind a launcher too, whose end is not that of who wants the child; and by itself it ends as ever."""
    first = "import sys, time; from edgevqa.runtime.processes import end_with_input; sys.stdin.buffer.readline(); "
    for after, code in (("time.sleep(60)", ORPHANED), ("sys.exit(5)", 5)):
        command = [sys.executable, "-c", f"{first}end_with_input(); print('at work', flush=True); {after}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdin.write(b"a job\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"at work\n"
            if code == ORPHANED:
                assert child.poll() is None
                child.stdin.close()
            assert child.wait(30) == code
            assert child.stderr.read() == b""


def _is_there(pid: int) -> bool:
    """Whether a process is there and not dead: one that nobody waits for is listed on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_kernel_tells_how_many_processes_it_ended_for_memory(tmp_path: Path) -> None:
    assert memory_kills(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("pgfault 12\noom_kill 3\ndrop_pagecache 0\n")
    assert memory_kills(tmp_path) == 3
    (tmp_path / "proc/vmstat").write_text("pgfault 12\n")
    assert memory_kills(tmp_path) is None
