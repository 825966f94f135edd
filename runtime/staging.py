"""Output that is whole or absent: written beside its place, then renamed; full or read-only disks get clear errors."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from edgevqa.runtime.errors import DISK_FULL, EdgeVQAError, InputError, UnavailableError
from edgevqa.runtime.folder_lock import folder_lock

FORGOTTEN_S = 24 * 3600
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR})


class Staging:
    """A partial sibling of `target`, which becomes it or vanishes.

    A context manager: entering checks the place and makes `target`'s missing parents; `commit` renames the partial into
    place; leaving without `commit` removes all that was made. `target` may be a link; what it points to is replaced.
    """

    def __init__(self, target: Path, *, needed_bytes: int | None = None) -> None:
        self.target = Path(os.path.realpath(target))
        self.needed_bytes = needed_bytes
        self.partial = self.target.parent / f".{self.target.name}.partial-{secrets.token_hex(4)}"
        self._made_parents: list[Path] = []
        self._aside: Path | None = None

    def __enter__(self) -> Staging:
        self._check_kind()
        self._remove_forgotten()
        try:
            self._make_parents()
            self._check_space()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def commit(self, check: Callable[[], None] | None = None) -> None:
        """Flush the partial to the disk and rename it into place; an existing target is replaced.

        `check` may refuse that, by raising. It is called last, while no other process that has a `check` can replace
        anything beside the target, so that what it found still holds when the names change.
        """
        sync(self.partial)  # takes long: not within the lock
        with contextlib.nullcontext() if check is None else folder_lock(self.target.parent):
            if check is not None:
                check()
            self._put_in_place()
        self._made_parents = []
        self._remove_aside()
        sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the partial and the parents made for it, and what was replaced. Does nothing after `commit`."""
        self._remove_aside()
        remove(self.partial)
        for parent in reversed(self._made_parents):
            with contextlib.suppress(OSError):
                parent.rmdir()
        self._made_parents = []

    def _check_kind(self) -> None:
        """Refuse a device or a pipe: a rename would put a plain file in its place, for every program of the machine."""
        if self.target.exists() and not (self.target.is_file() or self.target.is_dir()):
            raise InputError(f"{self.target} is a device or a pipe; expected the name of a file, or of a folder.")
        refuse_place(self.target)

    def _remove_forgotten(self) -> None:
        """Remove partials of the same target that nobody has written to for a day: a killed process could not.

        A younger one may be another process at work.
        """
        start = f".{self.target.name}.partial-"
        with contextlib.suppress(OSError):
            for sibling in self.target.parent.iterdir():
                if sibling.name.startswith(start) and time.time() - _last_written(sibling) > FORGOTTEN_S:
                    remove(sibling)

    def _make_parents(self) -> None:
        parent = self.target.parent
        missing: list[Path] = []
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for folder in reversed(missing):
            folder.mkdir()
            self._made_parents.append(folder)

    def _check_space(self) -> None:
        free_bytes = shutil.disk_usage(self.target.parent).free
        if self.needed_bytes is not None and self.needed_bytes > free_bytes:
            raise UnavailableError(
                f"{self.target} needs {readable_bytes(self.needed_bytes)}, but {self.target.parent} has only "
                f"{readable_bytes(free_bytes)} free. Free some space, or write to another disk."
            )

    def _put_in_place(self) -> None:
        """Rename the partial; a folder that it replaces is moved aside whole."""
        if not self.target.is_dir():
            self.partial.replace(self.target)
            return
        aside = self.target.parent / f".{self.target.name}.old-{secrets.token_hex(4)}"
        self._aside = aside
        try:
            self.target.rename(aside)
            self.partial.rename(self.target)
        except BaseException:
            if aside.exists() and not self.target.exists():
                aside.rename(self.target)
            raise

    def _remove_aside(self) -> None:
        """Delete the folder that was replaced, once the new one stands in its place; `discard` does where this was stopped."""
        if self._aside is not None and self.target.exists():
            remove(self._aside)
            self._aside = None


def _last_written(path: Path) -> float:
    """The newest time at which a file, a folder or anything below it was written."""
    below = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return max(each.lstat().st_mtime for each in (path, *below))


def check_place(target: Path, *, in_place: bool = False) -> None:
    """Raise `InputError` or `UnavailableError` where no file can be written to `target`: before work that takes long.

    One is written beside it, in folders that are made for it, and all of that is removed again. `in_place` as in
    `explain_write_error`.
    """
    with clear_write_errors(target, in_place=in_place), Staging(target) as staging:
        staging.partial.touch()


def refuse_place(path: Path) -> None:
    """Raise `InputError` for a folder that no rename can replace: a mount point, or one that this process stands in."""
    real = Path(os.path.realpath(path))
    if not real.is_dir():
        return
    if os.path.ismount(real):
        raise InputError(
            f"{path} is a mount point, which cannot be replaced by a rename. Put the bundle into a folder below it, and "
            "give that folder."
        )
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it is gone already
        return
    if real in (here, *here.parents):
        raise InputError(
            f"{path} holds the current directory, and is replaced as a whole: you would stand in a folder that is gone. "
            f"Run the command from outside: cd {shlex.quote(str(real.parent))}"
        )


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds, as far as possible; links are deleted, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or every file and folder below `path`, to the disk. Raises `OSError`."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _fsync(Path(folder, name))
            sync_folder(Path(folder))
    else:
        _fsync(path)


def sync_folder(path: Path) -> None:
    """Flush the folder's entries to the disk, where the operating system can open a folder."""
    if os.name == "posix":
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def clear_write_errors(
    target: Path, *, needed_bytes: int | None = None, in_place: bool = False
) -> Generator[None, None, None]:
    """Turn what `explain_write_error` knows into its clear error; everything else passes through."""
    try:
        yield
    except Exception as error:
        clear = explain_write_error(error, target, needed_bytes=needed_bytes, in_place=in_place)
        if clear is None:
            raise
        raise clear from error


def explain_write_error(
    error: BaseException, target: Path, *, needed_bytes: int | None = None, in_place: bool = False
) -> EdgeVQAError | None:
    """A clear error for a full disk (`UnavailableError`) or a place that cannot be written (`InputError`), else None.

    A full disk is recognised in what other exceptions say and were caused by. Permission errors about files elsewhere
    (an input, say) are not explained. `in_place`: the target is what the command was given to add to, and no output of
    which another could be named.
    """
    real = Path(os.path.realpath(target))
    if isinstance(error, EdgeVQAError):
        return None
    if any(_is_disk_full(cause) for cause in _chain(error)):
        return _disk_full(real, needed_bytes)
    unwritable = isinstance(error, OSError) and error.errno in _NOT_WRITABLE and _is_output(error, real)
    # what /proc and folders that were deleted say to a new file; of a file within the partial it would be a bug
    nowhere = isinstance(error, FileNotFoundError) and _is_output(error, real, within=False)
    if isinstance(error, OSError) and (unwritable or nowhere):
        return _not_writable(real, error.strerror, in_place=in_place)
    return None


def _not_writable(target: Path, why: str | None, *, in_place: bool) -> InputError:
    if not in_place:
        return InputError(f"{target} cannot be written: {why}. Give an output that you may write to.")
    return InputError(
        f"{target} cannot be added to: a new one is written beside it, in {target.parent}, which says: {why}. Copy it to "
        f"a folder that you may write to, and give the copy: cp -r {shlex.quote(str(target))} FOLDER"
    )


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return os.strerror(errno.ENOSPC) in str(error)  # native writers, such as safetensors', give the words alone


def _disk_full(target: Path, needed_bytes: int | None) -> UnavailableError:
    needed = "" if needed_bytes is None else f" (about {readable_bytes(needed_bytes)} are needed)"
    return UnavailableError(
        f"The disk became full, or a file-size limit was reached, while writing {target}{needed}; {_free_at(target)}. "
        "Nothing was kept. Free some space, or write to another disk."
    )


def _free_at(target: Path) -> str:
    place = target.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    return f"{place} has {readable_bytes(shutil.disk_usage(place).free)} free now"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that caused it, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _is_output(error: OSError, target: Path, *, within: bool = True) -> bool:
    """Whether the error is about the target, a folder above it, or its partial, or with `within` a file in that."""
    if not isinstance(error.filename, str):
        return False
    path = Path(os.path.realpath(error.filename))
    staged = any(
        place.parent == target.parent and place.name.startswith(f".{target.name}.")
        for place in (path, *(path.parents if within else ()))
    )
    return staged or path == target or path in target.parents


def readable_bytes(count: int) -> str:
    """A size for people, in decimal units: `3.2 GB`."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
