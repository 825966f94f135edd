"""Runs the building process: listens to it, tells how far it is, watches its memory, stops it, says what became of it."""

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
from typing import IO, NamedTuple

import msgspec

from edgevqa.export.engine.estimate import smaller_text
from edgevqa.export.engine.protocol import Built, Inspected, Job, Message, Phase, Refused, encode_line
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, kind_of
from edgevqa.runtime.processes import ending_text, last_words, memory_kills

_CHILD = ("-m", "edgevqa.export.engine.child")
_POLL_S = 0.1
_INSPECTION_S = 300.0  # how long a finished engine may say nothing of itself; loading one may compile kernels
_KILLED = (-9, 128 + 9)  # and as a shell that launched it tells
AGAIN = "Run the command again."
_GRACE_S = 10.0  # how long a cancelled build may take to come to TensorRT's next step

Tell = Callable[[Phase, float], None]
"""Called with the phase and the process's resident size in MB of 10^6 bytes."""


def run_job(job: Job, tell: Tell, *, memory_budget_bytes: int | None = None, again: str = AGAIN) -> Built:
    """Build one engine in a process of its own, which ends with this call however it ends.

    Raises what the process raised, `CheckFailed` where it went over the memory budget, and `EdgeVQAError` with the
    memory that it had reached where it died; `again` is what that then says of running the command again. An engine that is
    written is given even where the process dies while it asks the engine what it is.
    """
    with tempfile.TemporaryFile() as told, _process(job, told) as process:
        lines = _lines(process)
        built = _until_built(job, tell, _Watched(process, lines, told, memory_budget_bytes, again))
        return _inspected(lines).added_to(built)


class _Watched(NamedTuple):
    """The process, what it says and said, how much memory it may take, and how to go on after its death."""

    process: subprocess.Popen[bytes]
    lines: queue.Queue[Message | None]
    told: IO[bytes]
    memory_budget_bytes: int | None
    again: str


def _until_built(job: Job, tell: Tell, watched: _Watched) -> Built:
    """Listen until the engine is written, and watch the memory."""
    process, lines, told, memory_budget_bytes, again = watched
    peak_mb, kills = 0.0, memory_kills()
    phase = Phase(name="starting", done=0, total=0)
    while True:
        resident = resident_mb(process.pid)
        peak_mb = max(peak_mb, resident)
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
            code = process.wait()
            if code in _KILLED:
                raise EdgeVQAError(_killed_text(job, peak_mb, kills, again))
            raise EdgeVQAError(_ended_text(job, code, peak_mb, told, again))
        if isinstance(message, Built):
            return message
        if isinstance(message, Refused):
            raise kind_of(message.exit_code)(message.message)
        if isinstance(message, Phase):
            phase = message
            tell(phase, resident)


def _inspected(lines: queue.Queue[Message | None]) -> Inspected:
    """What the engine says of itself; where the process does not come to tell, only that."""
    try:
        message = lines.get(timeout=_INSPECTION_S)
    except queue.Empty:
        why = f"nothing was heard in {_INSPECTION_S:.0f} s"
    else:
        if isinstance(message, Inspected):
            return message
        why = message.message if isinstance(message, Refused) else "the process that loaded it died"
    return Inspected(warning=f"the engine is built, and its own FP32 layers are not known: {why.rstrip('.')}")


@contextlib.contextmanager
def _process(job: Job, told: IO[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """The process, in a session of its own so that Ctrl-C reaches this process alone; stopped on leaving."""
    process = subprocess.Popen(
        [sys.executable, *_CHILD],
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
                process.stdin.flush()
        yield process
    finally:
        _stop(process)
        for pipe in (process.stdin, process.stdout):  # the end of its input ends a process that a launcher left behind
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


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
    decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

    def read() -> None:
        with contextlib.suppress(ValueError):  # the pipe was closed under us
            for line in process.stdout or ():
                with contextlib.suppress(msgspec.MsgspecError):
                    found.put(decoder.decode(line))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def _killed_text(job: Job, peak_mb: float, kills_before: int | None, again: str) -> str:
    """What is known of a process that SIGKILL ended, and what to do."""
    ended = f"The process that built graph '{job.graph}' {ending_text(_KILLED[0])} at {peak_mb:,.0f} MB."
    kills = memory_kills()
    if kills is not None and kills_before is not None and kills > kills_before:
        return f"{ended} The kernel ended it because memory was short. {smaller_text(job.options, job.numerics)}"
    return (
        f"{ended} The kernel tells of no process that it ended for memory: something else sent the signal, or the memory limit "
        f"of a container did. {again} If it ends so again: {smaller_text(job.options, job.numerics)}"
    )


def _ended_text(job: Job, code: int, peak_mb: float, told: IO[bytes], again: str) -> str:
    """How the process ended by itself, and what to do."""
    ended = f"The process that built graph '{job.graph}' {ending_text(code)} at {peak_mb:,.0f} MB."
    last = last_words(told)
    if code < 0:
        return (
            f"{ended}{last} That is a fault within TensorRT or its driver. {again} If it ends so again, try another "
            "--precision or --optimization-level, update TensorRT, and report it with 'edgevqa inspect --json' of the bundle."
        )
    return f"{ended}{last} {again}"


def resident_mb(pid: int) -> float:
    """Resident size of a process in MB of 10^6 bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


_PACE_STEPS, _PACE_S = 2, 1.0  # steps and seconds from which a phase has a pace


class TimeLeft:
    """An estimate of the time left of a phase, from the pace of the steps that were done."""

    def __init__(self) -> None:
        self._name, self._first, self._done = "", 0, 0
        self._began = self._stepped = 0.0

    def tell(self, phase: Phase, now: float | None = None) -> str:
        """`tactics 40 of 120 (33%), about 12 s left`; without the time where it is not known, or used up."""
        now = time.monotonic() if now is None else now
        if phase.name != self._name or phase.done < self._done:
            self._name, self._first, self._began, self._stepped = phase.name, phase.done, now, now
        elif phase.done > self._done:
            self._stepped = now
        self._done = phase.done
        if phase.total <= 0:
            return phase.name
        text = f"{phase.name} {phase.done} of {phase.total} ({phase.done / phase.total:.0%})"
        steps, took = phase.done - self._first, self._stepped - self._began
        if steps < _PACE_STEPS or took < _PACE_S:
            return text
        left = took / steps * (phase.total - phase.done) - (now - self._stepped)
        return f"{text}, about {left:.0f} s left" if left >= 1 else text
