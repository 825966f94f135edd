"""Run a command as a whole process and watch its memory: what it needs for itself, and what of files it has mapped, apart.

Mapped pages of files that were not changed are dropped when memory is short: a process needs its anonymous memory, and the
rest makes it faster. Linux alone tells them apart.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.02
_FIELDS = {"RssAnon": "anonymous", "RssFile": "mapped", "VmRSS": "all"}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One finished process with its largest sampled figures; `peak_mb` is of both kinds together."""

    seconds: float
    cpu_seconds: float
    peak_anonymous_mb: float
    peak_mapped_mb: float
    peak_mb: float
    output: str


def watch(command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> Watched:
    """Run `command` to its end. Raises `RuntimeError` with what it printed when its exit code is not 0."""
    words = [str(part) for part in command]
    peaks = dict.fromkeys(_FIELDS.values(), 0)
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        while True:
            found, status, usage = os.wait4(child.pid, os.WNOHANG)
            if found:
                break
            for name, kib in _sizes(child.pid).items():
                peaks[name] = max(peaks[name], kib)
            time.sleep(INTERVAL_S)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {child.returncode}:\n{text}")
    return Watched(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_anonymous_mb=peaks["anonymous"] / 1024,
        peak_mapped_mb=peaks["mapped"] / 1024,
        peak_mb=peaks["all"] / 1024,
        output=text,
    )


def _sizes(process: int) -> dict[str, int]:
    """What Linux says of the process now, in KiB; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {_FIELDS[name]: int(value.split()[0]) for name, value in pairs if name in _FIELDS}
