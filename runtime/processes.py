"""Child processes: that they end with their parent, how they ended, and whether the kernel ended some for memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_TOLD_BYTES = 2000  # of a long standard error: where its last line begins
ORPHANED = 71
"""The exit code of a process whose parent is gone."""


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 70` for one that this system has no name for."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ending_text(code: int) -> str:
    """What a process's return code says: `ended with exit code 3`, or `was ended by SIGSEGV`."""
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal_name(-code)}"


def end_with_parent() -> None:
    """Let Linux kill this process when its parent ends: even SIGKILL then leaves nothing at work. Nothing elsewhere.

    The parent's thread that made this process must live as long. A parent that is gone already, and one that only launched
    this process for another, are not seen: `end_with_input` sees those.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def end_with_input(descriptor: int = 0) -> None:
    """Leave when an input ends, which whoever wants this process keeps open: its end means that they are gone.

    It is read by a thread from now on, and what it says is dropped. It holds behind a launcher too, and on every system.
    """

    def read() -> None:  # not through sys.stdin, whose lock Python asks for when it ends
        while os.read(descriptor, 1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=read, daemon=True, name="parent").start()


def memory_kills(root: Path = Path("/")) -> int | None:
    """How many processes Linux has ended since its start because memory was short; None where the system does not say.

    Those of control groups that reached their limit are counted too.
    """
    match = re.search(r"^oom_kill (\d+)$", _read(root / "proc/vmstat"), re.MULTILINE)
    return int(match.group(1)) if match else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def last_words(told: IO[bytes]) -> str:
    """` It said: ...` with the last line of a file that a process wrote its standard error to; "" where it wrote nothing."""
    size = told.seek(0, os.SEEK_END)
    told.seek(max(0, size - _TOLD_BYTES))
    lines = told.read().decode(errors="replace").strip().splitlines()
    return f" It said: {lines[-1]}" if lines else ""
