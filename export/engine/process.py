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
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

import msgspec

from edgevqa.export.engine.protocol import Built, Job, Message, Phase, Refused, encode_line
from edgevqa.export.engine.smaller import smaller_text
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, kind_of
from edgevqa.runtime.processes import ending_text, free_mb

_CHILD = ("-m", "edgevqa.export.engine.child")
_POLL_S = 0.1
_SHORT_MB = 1000.0  # free memory below which the system may have ended a process that asked for more
_AGAIN = "Run the command again: engines that are finished are kept."
_GRACE_S = 10.0  # how long a cancelled build may take to come to TensorRT's next step

Tell = Callable[[Phase, float], None]
"""Called with the phase and the process's resident size in MB of 10^6 bytes."""


def run_job(job: Job, tell: Tell, *, memory_budget_bytes: int | None = None) -> Built:
    """Build one engine in a process of its own, which ends with this call however it ends.

    Raises what the process raised, `CheckFailed` where it went over the memory budget, and `EdgeVQAError` with the
    memory that it had reached where it died.
    """
    reached = _Reached()
    with tempfile.TemporaryFile() as told, _process(job, told) as process:
        lines = _lines(process)
        phase = Phase(name="starting", done=0, total=0)
        while True:
            resident = resident_mb(process.pid)
            reached.note(resident)
            if memory_budget_bytes is not None and resident * 1e6 > memory_budget_bytes:
                raise CheckFailed(
                    f"Building graph '{job.graph}' took {resident:,.0f} MB of memory; the budget is "
                    f"{memory_budget_bytes / 1e6:,.0f} MB. {smaller_text(job.options, job.numerics)}"
                )
            try:
                message = lines.get(timeout=_POLL_S)
            except queue.Empty:
                tell(phase, resident)
                continue
            if message is None:
                raise EdgeVQAError(_epitaph(job, process.wait(), reached, told))
            if isinstance(message, Built):
                return message
            if isinstance(message, Refused):
                raise kind_of(message.exit_code)(message.message)
            phase = message
            tell(phase, resident)


class _Reached:
    """The most memory that the process had, and the least that the machine then had left; None where it is not known."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self.free_mb = free_mb()

    def note(self, resident_mb: float) -> None:
        self.peak_mb = max(self.peak_mb, resident_mb)
        now = free_mb()
        if now is not None and self.free_mb is not None:
            self.free_mb = min(self.free_mb, now)

    @property
    def is_short(self) -> bool:
        """Whether memory may have been what the process lacked."""
        return self.free_mb is None or self.free_mb < max(_SHORT_MB, self.peak_mb / 4)


@contextlib.contextmanager
def _process(job: Job, told: IO[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """The process, in a session of its own so that Ctrl-C reaches this process alone; stopped on leaving."""
    process = subprocess.Popen(
        [sys.executable, *_CHILD, str(os.getpid())],
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


def _epitaph(job: Job, code: int, reached: _Reached, told: IO[bytes]) -> str:
    """How the process ended, and what to do."""
    free = "" if reached.free_mb is None else f", with {reached.free_mb:,.0f} MB of memory free"
    ended = f"The process that built graph '{job.graph}' {ending_text(code)} at {reached.peak_mb:,.0f} MB{free}."
    if code == -signal.SIGKILL:
        if reached.is_short:
            return f"{ended} Most likely the memory did not suffice. {smaller_text(job.options, job.numerics)}"
        return f"{ended} That is hardly for want of memory: something else ended it. {_AGAIN}"
    size = told.seek(0, os.SEEK_END)
    told.seek(max(0, size - 2000))
    lines = told.read().decode(errors="replace").strip().splitlines()
    last = f" It said: {lines[-1]}" if lines else ""
    if code < 0:
        return (
            f"{ended}{last} That is a fault within TensorRT or its driver. {_AGAIN} If it ends so again, try another "
            "--precision or --optimization-level, update TensorRT, and report it with 'edgevqa inspect --json' of the bundle."
        )
    return f"{ended}{last} {_AGAIN}"


def resident_mb(pid: int) -> float:
    """Resident size of a process in MB of 10^6 bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
