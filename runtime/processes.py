"""Child processes: that they end with their parent, how they ended, and how much memory the machine has left for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 70` for one that this system has no name for."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ending_text(code: int) -> str:
    """What a process's return code says: `ended with exit code 3`, or `was ended by SIGSEGV`."""
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal_name(-code)}"


def is_orphan(parent: int) -> bool:
    """Whether this process's parent is no longer the one with the id `parent`."""
    return os.getppid() != parent


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent, whose id is `parent`, ends: even SIGKILL then leaves nothing at work.

    The parent's thread that made this process must live as long. Leaves at once where the parent is gone already.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if is_orphan(parent):
        raise SystemExit(128 + signal.SIGHUP)


def free_mb(root: Path = Path("/")) -> float | None:
    """Memory that programs can still take, in MB of 10^6 bytes; None where the system does not say.

    It is Linux's `MemAvailable`, or what the control group leaves where that is less.
    """
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    found = [int(match.group(1)) * 1.024e-3] if match else []
    for most, used in _LIMITS:
        limit, taken = (_read(root / "sys/fs/cgroup" / name).strip() for name in (most, used))
        if limit.isdecimal() and taken.isdecimal():  # "max" is no limit
            found.append(max(int(limit) - int(taken), 0) / 1e6)
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
