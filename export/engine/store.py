"""Finished engines of a build that is not: kept in the user's cache, so that a build that was stopped goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edgevqa.export.engine.protocol import Built, Job
from edgevqa.runtime.hashing import sha256_bytes, sha256_file
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import Version


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    built: Built


class EngineStore:
    """Engines by everything that decides them: graph, weights, profiles, options, TensorRT, GPU."""

    def __init__(self, *, hashes: list[str | None], version: Version, device: str | None) -> None:
        self._root = cache_dir() / "engines"
        self._common = msgspec.json.encode([hashes, version, device])

    def recall(self, job: Job, onnx_sha256: str) -> tuple[Path, Built] | None:
        """The engine of an equal job, if it was finished and is undamaged."""
        folder = self._folder(job, onnx_sha256)
        try:
            kept = msgspec.json.decode((folder / "built.json").read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError):
            return None
        plan = folder / "plan.engine"
        return (plan, kept.built) if plan.is_file() and sha256_file(plan) == kept.sha256 else None

    def keep(self, job: Job, onnx_sha256: str, built: Built) -> None:
        """Copy a finished engine; its description is written last."""
        folder = self._folder(job, onnx_sha256)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.engine, folder / "plan.engine")
        kept = _Kept(sha256=sha256_file(folder / "plan.engine"), built=built)
        (folder / "built.json").write_bytes(msgspec.json.encode(kept))

    def forget(self, job: Job, onnx_sha256: str) -> None:
        """Remove what was kept: the bundle has it now."""
        shutil.rmtree(self._folder(job, onnx_sha256), ignore_errors=True)

    def _folder(self, job: Job, onnx_sha256: str) -> Path:
        options = msgspec.structs.replace(job.options, rebuild=False, timing_cache=None, memory_budget_bytes=None)
        same = msgspec.json.encode([self._common, job.graph, onnx_sha256, job.profiles, options])
        return self._root / sha256_bytes(same)[:32]
