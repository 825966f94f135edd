"""A process for each thing that is tried: one that crashes, hangs or fails ends alone, and is told with its reason."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgevqa.runtime.processes import ending_text

PATIENCE_S = 60  # a driver that hangs can keep a killed process; what comes next is tried all the same
ROOT = Path(__file__).resolve().parent.parent.parent
UNAVAILABLE = 3
"""Exit code of what cannot run here: its last line says why, and says all."""


def run_process(command: Sequence[str | Path], *, log: Path, limit_s: float) -> str | None:
    """Run a command to its end, with all that it prints in `log`. None where it succeeded, else why it did not.

    It has a process group of its own, which is killed when the command has ended, at the limit, and on Ctrl-C: compilers
    leave processes behind.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # no new session: what ends this one's session must end the command too
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
    if code == 0:
        return None
    said = last_line(log)
    if code == UNAVAILABLE and said:
        return said
    ending = (
        f"it was stopped after {limit_s:,.0f} s (--limit-s)" if code is None else f"its process {ending_text(code)}"
    )
    return f"{ending}; it last said: {said} (more in {log.name})" if said else f"{ending}, and said nothing"


def last_line(log: Path) -> str:
    """The last line of a file that is not empty, or ""."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
