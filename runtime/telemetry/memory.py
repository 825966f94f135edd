"""Peak memory of this process, as the operating system counted it."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory_mb(root: Path = Path("/")) -> float | None:
    """The most memory this process ever held in RAM, in MB of 10^6 bytes; None where Linux does not tell.

    It is `VmHWM`: all resident pages, those of shared libraries and mapped files included. (`ru_maxrss` would not do: a
    child inherits its parent's peak.)
    """
    try:
        status = (root / "proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match.group(1)) * 1.024e-3 if match else None
