"""TensorRT's timing cache: read before the work and written after it; a file that is none is left alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from edgevqa.export.engine.protocol import Job
from edgevqa.export.engine.store import unkept_text
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.staging import check_place, remove

_OTHER = "Give another file: a missing or an empty one is begun."


def check_timing_cache(given: str | Path | None) -> None:
    """Raise `InputError` where `--timing-cache` is a folder, or cannot be read or written: before the work."""
    if given is None:
        return
    path = Path(given)
    if path.is_dir():
        raise InputError(f"--timing-cache {path}: it is a folder; expected a file. {_OTHER}")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise InputError(f"--timing-cache {path}: you may not read and write it. {_OTHER}")
    check_place(path.absolute())


def open_timing_cache(config: Any, job: Job, logger: Any) -> Any:
    """The cache of earlier builds, set in `config`; None where the job has none, as TensorRT-RTX, which tunes when it loads.

    Raises `InputError` for a file of `--timing-cache` that this TensorRT does not take. In the user's cache directory, such
    a file is one of another GPU or broken, and begun anew.
    """
    if job.timing_cache is None or job.options.row.flavour == "tensorrt-rtx":
        return None
    path = Path(job.timing_cache)
    data = b""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
    cache = _taken(config, data, logger)
    if cache is None and data and job.options.timing_cache is not None:
        raise InputError(
            f"--timing-cache {path}: TensorRT does not take it: it is no timing cache, or one of another TensorRT or GPU. "
            f"It was not changed. {_OTHER}"
        )
    return cache if cache is not None or not data else _taken(config, b"", logger)


def _taken(config: Any, data: bytes, logger: Any) -> Any:
    """The cache of the data, None where TensorRT refuses it; some versions give an empty one instead and only say so."""
    before = len(logger.errors), len(logger.warnings)
    cache = config.create_timing_cache(data)
    said = [*logger.errors[before[0] :], *logger.warnings[before[1] :]]
    doubted = bool(data) and any("timing cache" in line.lower() for line in said)
    return cache if cache is not None and not doubted and config.set_timing_cache(cache, False) else None


def keep_timing_cache(cache: Any, config: Any, job: Job) -> list[str]:
    """Write it, whole or not at all. What cannot be written costs later builds their time, not this one its engine."""
    used = None if cache is None else config.get_timing_cache()
    if used is None or job.timing_cache is None:
        return []
    temporary = Path(f"{job.timing_cache}.{os.getpid()}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(memoryview(used.serialize()))
        temporary.replace(job.timing_cache)
    except OSError as error:
        return [unkept_text("The timing cache", job.timing_cache, error)]
    finally:
        remove(temporary)
    return []
