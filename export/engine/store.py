"""Finished engines of a build that is not: kept in the user's cache, so that a build that was stopped goes on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec

from edgevqa.export.engine.protocol import Built, Job
from edgevqa.runtime.hashing import sha256_bytes, sha256_file
from edgevqa.runtime.paths import CACHE_VARIABLE, cache_dir
from edgevqa.runtime.plans import Version
from edgevqa.runtime.staging import remove

_PLAN, _DESCRIPTION = "plan.engine", "built.json"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    built: Built


class EngineStore:
    """Engines by everything that decides them: graph, weights, profiles, options, TensorRT, GPU.

    A convenience: where the cache cannot be written, nothing is kept any more, and `warnings` says so once.
    """

    def __init__(self, *, hashes: list[str | None], version: Version, device: str | None) -> None:
        self._root = cache_dir() / "engines"
        self._common = msgspec.json.encode([hashes, version, device])
        self.warnings: list[str] = []

    def recall(self, job: Job, onnx_sha256: str) -> tuple[Path, Built] | None:
        """The engine of an equal job, if it was finished and is undamaged."""
        folder = self._folder(job, onnx_sha256)
        try:
            kept = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=_Kept)
            plan = folder / _PLAN
            return (plan, kept.built) if sha256_file(plan) == kept.sha256 else None
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, job: Job, onnx_sha256: str, built: Built) -> None:
        """Copy a finished engine, whole or not at all."""
        if self.warnings:
            return
        folder = self._folder(job, onnx_sha256)
        draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
        try:
            draft.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.engine, draft / _PLAN)
            kept = _Kept(sha256=sha256_file(draft / _PLAN), built=built)
            (draft / _DESCRIPTION).write_bytes(msgspec.json.encode(kept))
            remove(folder)  # a damaged one
            draft.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another build of the same has just kept it
                return
            self.warnings.append(unkept_text("What a stopped build finished", self._root, error))
        finally:
            remove(draft)

    def forget(self, job: Job, onnx_sha256: str) -> None:
        """Remove what was kept, and what a killed process had begun to keep: the bundle has it now."""
        folder = self._folder(job, onnx_sha256)
        for draft in self._root.glob(f"{folder.name}.*.draft"):
            remove(draft)
        remove(folder)

    def _folder(self, job: Job, onnx_sha256: str) -> Path:
        options = msgspec.structs.replace(job.options, rebuild=False, timing_cache=None, memory_budget_bytes=None)
        same = msgspec.json.encode([self._common, job.graph, onnx_sha256, job.profiles, options])
        return self._root / sha256_bytes(same)[:32]


def unkept_text(what: str, place: Path | str, error: OSError) -> str:
    """The warning for what a cache does not take: it costs later builds their time, and not this one its engines."""
    return (
        f"{what} cannot be kept in {place}: {error.strerror or error}. This build goes on; a later one begins anew. Free "
        f"some space there, or name another folder: {CACHE_VARIABLE}=FOLDER"
    )
