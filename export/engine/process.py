"""Runs the building process: listens to it, watches its memory, stops it, and says what became of it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

import msgspec

from edgevqa.export.engine.protocol import Built, Job, Message, Phase, Refused, encode_line
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, InputError, UnavailableError

_POLL_S = 0.1
_GRACE_S = 10.0  # how long a cancelled build may take to come to TensorRT's next step
_BRANCHES = {kind.exit_code: kind for kind in (CheckFailed, InputError, UnavailableError)}

Tell = Callable[[Phase, float], None]
"""Called with the phase and the process's resident size in MB of 10^6 bytes."""


def run_job(job: Job, tell: Tell, *, memory_budget_bytes: int | None = None) -> Built:
    """Build one engine in a process of its own, which ends with this call however it ends.

    Raises what the process raised, `CheckFailed` where it went over the memory budget, and `EdgeVQAError` with the
    memory that it had reached where it died.
    """
    peak = 0.0
    with tempfile.TemporaryFile() as told, _process(job, told) as process:
        lines = _lines(process)
        phase = Phase(name="starting", done=0, total=1)
        while True:
            resident = resident_mb(process.pid)
            peak = max(peak, resident)
            if memory_budget_bytes is not None and resident * 1e6 > memory_budget_bytes:
                raise CheckFailed(
                    f"Building graph '{job.graph}' took {resident:,.0f} MB of memory; the budget is "
                    f"{memory_budget_bytes / 1e6:,.0f} MB. {_SMALLER}"
                )
            try:
                message = lines.get(timeout=_POLL_S)
            except queue.Empty:
                tell(phase, resident)
                continue
            if message is None:
                raise EdgeVQAError(_epitaph(job, process.wait(), peak, told))
            if isinstance(message, Built):
                return message
            if isinstance(message, Refused):
                raise _BRANCHES.get(message.exit_code, EdgeVQAError)(message.message)
            phase = message
            tell(phase, resident)


_SMALLER = (
    "Build the fp16 or int8 variant (--precision), fewer or smaller batches (--batch), "
    "a smaller --workspace, or raise --memory-budget."
)


@contextlib.contextmanager
def _process(job: Job, told: IO[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """The process, in a session of its own so that Ctrl-C reaches this process alone; stopped on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevqa.export.engine.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=told,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    try:
        with contextlib.suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.write(encode_line(job))
                process.stdin.close()
        yield process
    finally:
        _stop(process)
        if process.stdout is not None:
            process.stdout.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to cancel, and kill it where it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if process.poll() is None:
        process.kill()
    process.wait()


def _lines(process: subprocess.Popen[bytes]) -> queue.Queue[Message | None]:
    """What the process says, read by a thread, so that its memory is watched meanwhile; None at its end."""
    found: queue.Queue[Message | None] = queue.Queue()
    decoder = msgspec.json.Decoder(Phase | Built | Refused)

    def read() -> None:
        with contextlib.suppress(ValueError):  # the pipe was closed under us
            for line in process.stdout or ():
                with contextlib.suppress(msgspec.MsgspecError):
                    found.put(decoder.decode(line))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def _epitaph(job: Job, code: int, peak: float, told: IO[bytes]) -> str:
    """How the process ended, and what to change."""
    if code == -signal.SIGKILL:
        return (
            f"The process that built graph '{job.graph}' was killed after it had taken {peak:,.0f} MB, most likely "
            f"because the memory did not suffice. {_SMALLER}"
        )
    size = told.seek(0, os.SEEK_END)
    told.seek(max(0, size - 2000))
    lines = told.read().decode(errors="replace").strip().splitlines()
    last = f" It said: {lines[-1]}" if lines else ""
    return f"The process that built graph '{job.graph}' ended with code {code} at {peak:,.0f} MB.{last}"


def resident_mb(pid: int) -> float:
    """Resident size of a process in MB of 10^6 bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class TimeLeft:
    """An estimate of the time left of a phase, from the pace so far."""

    def __init__(self) -> None:
        self._phase, self._started = "", 0.0

    def tell(self, phase: Phase) -> str:
        """`tactics 40 of 120 (33 %), about 12 s left`."""
        now = time.monotonic()
        if phase.name != self._phase:
            self._phase, self._started = phase.name, now
        if phase.total <= 0:
            return phase.name
        share = phase.done / phase.total
        left = f", about {(now - self._started) / share * (1 - share):.0f} s left" if 0 < share < 1 else ""
        return f"{phase.name} {phase.done} of {phase.total} ({share:.0%}){left}"
