"""Run a command as a whole process and watch its memory: what it needs for itself, and what of files it has mapped, apart.

Mapped pages of files that were not changed are dropped when memory is short: a process needs its anonymous memory, and the
rest makes it faster. Linux alone tells them apart.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONTROL_GROUPS, DROP_CACHES = Path("/sys/fs/cgroup"), Path("/proc/sys/vm/drop_caches")
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


@contextmanager
def memory_group(limit_mb: float) -> Iterator[Path]:
    """A control group of Linux whose processes have `limit_mb` together, the pages of files that they read and write included.

    The kernel kills what needs more. Pages that are in memory already would not count: those of closed files are dropped.
    It takes root; raises `RuntimeError` where the group cannot be made.
    """
    apart = CONTROL_GROUPS / "memory"  # version 1 has a tree of its own for each resource
    group = (apart if apart.is_dir() else CONTROL_GROUPS) / f"edgevqa-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if apart.is_dir() else "memory.max")
        limit.write_text(str(int(limit_mb * 2**20)), encoding="ascii")
        os.sync()
        DROP_CACHES.write_text("3", encoding="ascii")
    except OSError as error:
        raise RuntimeError(f"No control group can be made at {group}: {error}. Run as root on Linux.") from error
    try:
        yield group
    finally:
        group.rmdir()


def watch(command: Sequence[str | Path], *, env: dict[str, str] | None = None, group: Path | None = None) -> Watched:
    """Run `command` to its end, in a control group where one is given.

    Raises `RuntimeError` with what it printed when its exit code is not 0.
    """
    words = [str(part) for part in command]
    peaks = dict.fromkeys(_FIELDS.values(), 0)
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        if group is not None:  # a shell that joins the group, and becomes the command
            words = ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *words]
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
