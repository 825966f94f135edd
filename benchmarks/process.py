"""Run a command as a whole process and measure it from outside: wall time, processor time, peak memory.

Linux counts the parent's memory at the fork into a child's peak; a small launcher stands between, so that a benchmark that
holds gigabytes itself does not measure them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import json, os, sys, time
started = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - started
figures = [seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]
os.write(int(sys.argv[1]), json.dumps(figures).encode())
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One finished process. Peak memory is the largest resident set, mapped files included."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def measure(command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> Measured:
    """Run `command` to its end. Raises `RuntimeError` with what it printed when its exit code is not 0."""
    words = [str(part) for part in command]
    reader, writer = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(writer), *words]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        launcher,
        pass_fds=(writer,),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=True,
    )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        seconds, cpu_seconds, peak_kib, code = json.loads(pipe.read())
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{done.stdout}")
    return Measured(seconds=seconds, cpu_seconds=cpu_seconds, peak_mb=peak_kib / 1024, output=done.stdout)
