"""The standard streams of the `edgevqa` process: errors of standard output name it, and standard error has none."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD_OUTPUT = "standard output"


class _StandardOutput(io.FileIO):
    """Says in its errors what could not be written; those of the system name no file."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error


class _StandardError(io.FileIO):
    """Drops what cannot be written: whether a message arrives changes neither the result nor the exit code."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Put streams in place of Python's own that take every character, and fail as this file says."""
    sys.stdout, sys.stderr = _opened(sys.stdout, _StandardOutput), _opened(sys.stderr, _StandardError)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer that the terminal cannot show is no bug
            stream.reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """Keep the interpreter from writing once more, on its way out, what standard output did not take."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _opened(stream: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """The same stream on a file of that kind; as it is where it is no plain file, such as Windows' console.

    Of one that the shell closed (`>&-`) Python makes None: it becomes one that takes everything.
    """
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "wb")))
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    buffered = isinstance(stream.buffer, io.BufferedWriter)  # not with PYTHONUNBUFFERED
    if type(stream.buffer.raw if buffered else stream.buffer) is not io.FileIO:
        return stream
    raw = kind(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
