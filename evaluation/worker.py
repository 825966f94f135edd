"""The process that measures one row: reads a task from standard input, writes messages to standard output.

Nothing else reaches its standard output: what a backend prints goes to standard error. It ends by itself when the
process that started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import BinaryIO

import msgspec

from edgevqa.evaluation.measure import measure_row
from edgevqa.evaluation.protocol import Failed, Message, Task, encode_line
from edgevqa.runtime.errors import EdgeVQAError, InputError, UnavailableError

ORPHANED = 71


def main() -> int:
    """Measure what the first line of standard input asks for; gives the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends this process
    messages = _take_stdout()
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    threading.Thread(target=_leave_with_parent, daemon=True, name="parent").start()

    def send(message: Message) -> None:
        messages.write(encode_line(message))
        messages.flush()

    try:
        send(measure_row(task, send))
    except EdgeVQAError as error:
        send(Failed(message=str(error), exit_code=error.exit_code))
    except BrokenPipeError:
        return ORPHANED
    except OSError as error:
        send(Failed(message=f"{error.filename or 'The system'}: {error.strerror}.", exit_code=InputError.exit_code))
    except MemoryError:
        send(Failed(message="The memory of this machine does not suffice.", exit_code=UnavailableError.exit_code))
    return 0


def _take_stdout() -> BinaryIO:
    """Standard output for the messages alone; everything else that is written to it goes to standard error."""
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return messages


def _leave_with_parent() -> None:
    """Standard input is kept open by the parent: its end means that the parent is gone."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
