"""Starting a process for each row, listening to it, and saying what became of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import IO

import msgspec

from edgevqa.evaluation.protocol import Answered, Failed, Measured, Message, Progress, Task, encode_line
from edgevqa.runtime.errors import EdgeVQAError, kind_of
from edgevqa.runtime.processes import ending_text, last_words

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(kw_only=True)
class RowResult:
    """What a row's process told: answers in the samples' order, and the figures."""

    texts: list[str] = field(default_factory=list[str])
    confidences: list[float] = field(default_factory=list[float])
    measured: Measured | None = None


def run_task(task: Task, label: str, advance: Report | None = None) -> tuple[RowResult, Measured]:
    """Measure a row in a process of its own, which ends with this call however it ends.

    `label` names the row in progress and errors. Raises what the process raised (with the same exit code), and
    `EdgeVQAError` with what it had reached where it died.
    """
    result = RowResult()
    stage = "starting"
    with tempfile.TemporaryFile() as told, _child(task, told) as process:
        for message in _messages(process):
            if isinstance(message, Progress):
                stage = f"{message.stage}, {message.done:,} of {message.total:,}"
                if advance is not None:
                    advance(f"{label}, {message.stage}", message.done, message.total)
            elif isinstance(message, Answered):
                result.texts += message.texts
                result.confidences += message.confidences
            elif isinstance(message, Failed):
                raise kind_of(message.exit_code)(f"{label}: {message.message}")
            else:
                result.measured = message
        if result.measured is None:
            raise EdgeVQAError(_epitaph(label, stage, process.wait(), told))
    return result, result.measured


@contextlib.contextmanager
def _child(task: Task, told: IO[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """The process, in a session of its own so that Ctrl-C reaches this process alone; killed on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevqa.evaluation.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=told,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module is taken from the working directory
        start_new_session=True,
    )
    try:
        with contextlib.suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.write(encode_line(task))
                process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _messages(process: subprocess.Popen[bytes]) -> Iterator[Message]:
    """What the process says, up to its figures or its end."""
    decoder = msgspec.json.Decoder(Progress | Answered | Measured | Failed)
    for line in process.stdout or ():
        try:
            message = decoder.decode(line)
        except msgspec.MsgspecError:  # a line that its end cut off
            return
        yield message
        if isinstance(message, Measured):
            return


def _epitaph(label: str, stage: str, code: int, told: IO[bytes]) -> str:
    """How the process ended, how far it had come, and the last line that it wrote to standard error."""
    ending = ending_text(code)
    if code == -signal.SIGKILL:
        ending += " (on Linux most often: the memory did not suffice)"
    return f"{label}: the process that measured it {ending} while {stage}.{last_words(told)}"
