"""One process at a time changes what a folder's names stand for: a lock that leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Generator
from pathlib import Path

LONGEST_WAIT_S = 20.0
_BETWEEN_TRIES_S = 0.02
_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})


@contextlib.contextmanager
def folder_lock(folder: Path) -> Generator[bool, None, None]:
    """Hold the folder's lock (`flock`) for as long as names in it are compared and renamed; gives whether it is held.

    It is on the folder itself: no file is made, and the system lets go of it when the process ends, however it ends. It
    is not held where the file system has no such locks (some network disks), and where another program keeps it for
    longer than renames take, such as `flock FOLDER edgevqa ...`: work that is done is not lost for that.
    """
    with contextlib.ExitStack() as stack:
        yield _acquire(folder, stack)


def _acquire(folder: Path, stack: contextlib.ExitStack) -> bool:
    if os.name != "posix":
        return False
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    stack.callback(os.close, handle)  # which lets go of the lock
    until = time.monotonic() + LONGEST_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD or time.monotonic() > until:
                return False
            time.sleep(_BETWEEN_TRIES_S)
        else:
            return True
