"""Engines that are finished: those of a build that was stopped, in the user's cache, and those that the bundle has."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

import msgspec

from edgevqa.export.engine.protocol import Built, Job
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import EngineRecord, load_record, stale_graphs
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.hashing import sha256_bytes, sha256_file
from edgevqa.runtime.paths import CACHE_VARIABLE, cache_dir
from edgevqa.runtime.plans import Version
from edgevqa.runtime.staging import remove

_PLAN, _DESCRIPTION = "plan.engine", "built.json"
_DRAFT_S = 86_400  # from which nobody copies any more


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
        self._own: set[Path] = set()
        self.warnings: list[str] = []

    def recall(self, job: Job, onnx_sha256: str) -> tuple[Path, Built] | None:
        """The engine of an equal job, if it was finished and is undamaged."""
        folder = self._folder(job, onnx_sha256)
        try:
            kept = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=_Kept)
            plan = folder / _PLAN
            if sha256_file(plan) != kept.sha256:
                return None
        except (OSError, msgspec.MsgspecError):
            return None
        self._own.add(folder)
        return plan, kept.built

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
            self._own.add(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another build of the same has just kept it
                return
            self.warnings.append(unkept_text("What a stopped build finished", self._root, error))
        finally:
            remove(draft)

    def forget(self) -> None:
        """Remove what this store has kept or recalled, for the bundle has it now; and what killed processes began to keep.

        Another process may be at work on an equal build: what it keeps is its own.
        """
        while self._own:
            remove(self._own.pop())
        for draft in self._root.glob("*.draft"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > _DRAFT_S:
                    remove(draft)

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


def finished_engines(bundle: Bundle, key: str, wanted: EngineRecord) -> EngineRecord | None:
    """The bundle's record of engines, with those of its present graphs alone; None where it is of another build.

    All but the graphs must be as in `wanted`; their profiles are for the caller to compare. A set with a damaged file is
    none: `BundleWriter.extend`, which has checked every file, has set it aside.
    """
    if key not in bundle.manifest.engines:
        return None
    try:
        record = load_record(bundle, key)
    except EdgeVQAError:
        return None
    if _told(record, wanted.tensorrt_version) != _told(wanted, wanted.tensorrt_version):
        return None
    stale = stale_graphs(bundle, record)
    graphs = {name: engine for name, engine in record.graphs.items() if name not in stale}
    return msgspec.structs.replace(record, graphs=graphs)


def _told(record: EngineRecord, version: Version) -> EngineRecord:
    """What the record says of the build. TensorRT's Python may not tell its build, then that is not compared."""
    own = (*record.tensorrt_version[:3], record.tensorrt_version[3] if version[3] else 0)
    changes = {"driver": None, "jetpack": None, "l4t": None, "calibration_sha256": None}
    return msgspec.structs.replace(record, graphs={}, tensorrt_version=own, **changes)
