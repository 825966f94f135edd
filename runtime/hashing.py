"""SHA-256 of files, and the memory of files already hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgevqa.runtime.paths import cache_dir

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the file in work, and the bytes done and in total over the whole operation."""

BLOCK_BYTES = 1 << 20
SETTLE_NS = 2_000_000_000
"""A file younger than this is not remembered: the next change might leave the same time stamp."""
MEMORY_LIMIT = 4096


class Meter:
    """Adds up bytes over the files of one operation and tells `progress`, if there is one."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.progress = progress
        self.total_bytes = total_bytes
        self.done_bytes = 0

    def add(self, name: str, count: int) -> None:
        self.done_bytes += count
        if self.progress is not None:
            self.progress(name, self.done_bytes, self.total_bytes)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, meter: Meter | None = None, *, name: str = "") -> str:
    """SHA-256 of the file in lower-case hexadecimal, read in blocks. Raises `OSError`."""
    digest = hashlib.sha256()
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(view[:count])
            if meter is not None:
                meter.add(name, count)
    return digest.hexdigest()


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the memory knows of one file: its identity when it was hashed, and the hash."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


class HashMemory:
    """Hashes remembered in `folder`, one small file each; any change of size, time stamps or inode forgets.

    A folder that can be neither read nor written means no memory, silently: everything is hashed again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "hashes"

    def recall(self, path: Path) -> str | None:
        """The remembered hash of the file as it is now, or None."""
        try:
            known = msgspec.json.decode(self._slot(path).read_bytes(), type=_Record)
            return known.sha256 if known == _identify(path, known.sha256) else None
        except (OSError, msgspec.MsgspecError):
            return None

    def remember(self, path: Path, sha256: str, before: os.stat_result) -> None:
        """Keep the hash of the file, unless it changed since `before` (its stat when hashing began) or just now."""
        with contextlib.suppress(OSError):
            record = _identify(path, sha256)
            changed = record != _from_stat(path, before, sha256)
            if changed or time.time_ns() - record.mtime_ns < SETTLE_NS:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            self._prune()
            slot = self._slot(path)
            draft = slot.with_name(f"{slot.name}.{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(record))
            draft.replace(slot)

    def hash_of(self, path: Path, meter: Meter | None = None, *, name: str = "") -> str:
        """The file's hash: remembered where nothing changed, else read and remembered. Raises `OSError`."""
        known = self.recall(path)
        if known is not None:
            if meter is not None:
                meter.add(name, path.stat().st_size)
            return known
        before = path.stat()
        found = sha256_file(path, meter, name=name)
        self.remember(path, found, before)
        return found

    def _slot(self, path: Path) -> Path:
        key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
        return self.folder / f"{key[:32]}.json"

    def _prune(self) -> None:
        """Drop the older half once there are more than `MEMORY_LIMIT` records."""
        slots = list(self.folder.iterdir())
        if len(slots) > MEMORY_LIMIT:
            slots.sort(key=lambda slot: slot.stat().st_mtime_ns)
            for slot in slots[: len(slots) // 2]:
                slot.unlink(missing_ok=True)


def _identify(path: Path, sha256: str) -> _Record:
    return _from_stat(path, path.stat(), sha256)


def _from_stat(path: Path, status: os.stat_result, sha256: str) -> _Record:
    return _Record(
        os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256
    )
