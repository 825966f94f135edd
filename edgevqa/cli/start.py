"""What the `edgevqa` script calls. Importing the command line takes a moment, in which Ctrl-C leaves quietly too.

Nothing heavy is imported here: to what comes before the handler is set, Python itself answers with a traceback.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Run the command line; 130 without a traceback where it is interrupted, however early."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a parent may have it ignored: then it stays so
        signal.signal(signal.SIGINT, _leave_at_once)
    from edgevqa.cli.main import main as run

    run()


def begin_command() -> None:
    """From here on Ctrl-C is an exception again, for there may be something to clean up."""
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave_at_once(signum: int, frame: object) -> None:
    """An exception in the middle of an import comes out as another one, or is only printed; nothing is open yet."""
    try:
        os.write(2, b"\nInterrupted.\n")
    finally:  # also where it cannot be written
        os._exit(INTERRUPTED)
