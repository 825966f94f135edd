"""Compiled graphs kept in the user's cache: what a backend wrote there is hashed, and loaded only while it is unchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.hashing import HashMemory, sha256_bytes
from edgevqa.runtime.paths import cache_dir

LIMIT_BYTES = 8 << 30
SPARE_BYTES = 1 << 30
_SUMS = "sums.json"


class CompiledCache:
    """The folder of one graph's compiled forms.

    It is named by the fingerprint of the graph's variant and by what compiles it, so that neither other weights nor
    another version or device can meet it. Where it cannot be written, or the disk is nearly full, there is no cache.
    """

    def __init__(self, folder: Path, graph_bytes: int = 0) -> None:
        """`graph_bytes` is the size of graph and weights; about as much is written."""
        self.folder = folder
        self._graph_bytes = graph_bytes

    @classmethod
    def of(cls, bundle: Bundle, variant: str, graph: str, *, made_by: str) -> CompiledCache:
        """The cache of a bundle's graph; `made_by` names backend, version and device."""
        key = sha256_bytes(f"{bundle.fingerprint(variant)} {made_by}".encode())[:32]
        weights = bundle.variant(variant).weights
        size = bundle.graph(variant, graph).file.size_bytes + (0 if weights is None else weights.size_bytes)
        return cls(cache_dir() / "compiled" / key / graph, size)

    @contextmanager
    def opened(self) -> Generator[Path | None, None, None]:
        """The folder for the time of loading, or None; then what is new in it is hashed and the oldest dropped."""
        if not self._prepare():
            yield None
            return
        yield self.folder
        with suppress(OSError):
            self._record()

    def _prepare(self) -> bool:
        """Make the folder and drop what is not as it was recorded; whether the folder can be used."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known, memory = self._sums(), HashMemory()
            for file in self._files():
                if known.get(file.name) != memory.hash_of(file):
                    file.unlink(missing_ok=True)
            spare = shutil.disk_usage(self.folder).free - self._graph_bytes
            return os.access(self.folder, os.W_OK) and spare > SPARE_BYTES
        except OSError:
            return False

    def _record(self) -> None:
        known, memory = self._sums(), HashMemory()
        files = self._files()
        sums = {file.name: known.get(file.name) or memory.hash_of(file) for file in files}
        draft = self.folder / f"{_SUMS}.{os.getpid()}.part"
        draft.write_bytes(msgspec.json.encode(sums))
        draft.replace(self.folder / _SUMS)  # its time stamp tells when the folder was last used
        if sums.keys() - known.keys():
            _prune(self.folder.parents[1], keep=self.folder)

    def _files(self) -> list[Path]:
        return [file for file in self.folder.iterdir() if not file.name.startswith(_SUMS)]

    def _sums(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.folder / _SUMS).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}


def _prune(root: Path, *, keep: Path) -> None:
    """Drop the folders that were used longest ago, until all below `root` have at most `LIMIT_BYTES`."""
    folders = sorted((folder for folder in root.glob("*/*") if folder.is_dir()), key=_last_used, reverse=True)
    total = 0
    for folder in (keep, *(folder for folder in folders if folder != keep)):
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > LIMIT_BYTES and folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    marks = folder / _SUMS
    return marks.stat().st_mtime if marks.exists() else 0.0
