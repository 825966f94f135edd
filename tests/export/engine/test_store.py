"""What a stopped build finished is kept in the cache, whole; a cache that takes nothing stops no build."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.protocol import Built, Job
from edgevqa.export.engine.store import EngineStore
from edgevqa.export.engine.timing import keep_timing_cache

SHA256 = "0" * 64
BUILT = Built(
    version=(1, 7, 1, 116),
    profiles=[],
    inputs=[],
    outputs=[],
    high_layers=[],
    high_operators={},
    fp32_layers=None,
    seconds=1.0,
    peak_memory_mb=1.0,
    warnings=[],
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, "projector")


def make_job(folder: Path, graph: str) -> Job:
    engine = folder / f"{graph}.engine"
    engine.write_bytes(graph.encode() * 1000)
    options = BuildOptions(target="rtx")
    return Job(
        graph=graph, onnx="", engine=str(engine), profiles=[], options=options, numerics="fp32", timing_cache=None
    )


def make_store() -> EngineStore:
    return EngineStore(hashes=[None], version=(1, 7, 1, 116), device=None)


def test_what_was_kept_is_found_until_it_is_forgotten(cache: Path, job: Job) -> None:
    store = make_store()
    store.keep(job, SHA256, BUILT)
    store.keep(job, SHA256, BUILT)
    assert store.warnings == []
    found = make_store().recall(job, SHA256)
    assert found is not None
    assert (found[0].read_bytes(), found[1]) == (Path(job.engine).read_bytes(), BUILT)
    store.forget()
    assert make_store().recall(job, SHA256) is None
    assert list((cache / "engines").iterdir()) == []


def test_what_another_process_keeps_is_left_to_it(cache: Path, job: Job, tmp_path: Path) -> None:
    """It may be at work on an equal build; what nobody has touched for a day is of one that was killed."""
    theirs = make_store()
    theirs.keep(job, SHA256, BUILT)
    (kept,) = (cache / "engines").iterdir()
    drafts = [kept.with_name(f"{kept.name}.{number}.draft") for number in (123, 456)]
    for draft in drafts:
        draft.mkdir()
    os.utime(drafts[1], (0, 0))
    store = make_store()
    store.keep(make_job(tmp_path, "vision_trunk"), SHA256, BUILT)
    store.forget()
    assert sorted((cache / "engines").iterdir()) == sorted([kept, drafts[0]])
    assert store.recall(job, SHA256) is not None
    store.forget()
    assert list((cache / "engines").iterdir()) == [drafts[0]], "it was recalled"


def test_a_damaged_one_is_not_found_and_is_replaced(cache: Path, job: Job) -> None:
    store = make_store()
    store.keep(job, SHA256, BUILT)
    plan = next(cache.rglob("plan.engine"))
    plan.write_bytes(b"damaged")
    assert store.recall(job, SHA256) is None
    plan.unlink()
    plan.mkdir()
    assert store.recall(job, SHA256) is None
    store.keep(job, SHA256, BUILT)
    assert store.recall(job, SHA256) is not None


def test_a_cache_that_cannot_be_made_is_told_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", "/proc/nope")
    store = make_store()
    assert store.recall(job, SHA256) is None
    store.keep(job, SHA256, BUILT)
    store.keep(make_job(tmp_path, "vision_trunk"), SHA256, BUILT)
    store.forget()
    (warning,) = store.warnings
    assert "cannot be kept in /proc/nope/engines: No such file or directory. This build goes on" in warning
    assert "EDGEVQA_CACHE_DIR=FOLDER" in warning


def test_a_full_cache_keeps_nothing_half(cache: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(source: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fill)
    store = make_store()
    store.keep(job, SHA256, BUILT)
    assert "No space left on device" in store.warnings[0]
    assert str(cache) in store.warnings[0]
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert list((cache / "engines").iterdir()) == []


def test_an_interrupted_copy_keeps_nothing_half(cache: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(source: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        make_store().keep(job, SHA256, BUILT)
    assert list((cache / "engines").iterdir()) == []


class Tuned:
    """What TensorRT gives as the timing cache that it used, and the configuration that gives it."""

    def serialize(self) -> bytes:
        return b"measured"

    def get_timing_cache(self) -> Tuned:
        return self


def test_a_timing_cache_that_cannot_be_written_is_told(job: Job, tmp_path: Path) -> None:
    place = tmp_path / "timing" / "own.cache"
    whole = msgspec.structs.replace(job, timing_cache=str(place))
    assert keep_timing_cache(Tuned(), Tuned(), whole) == []
    assert place.read_bytes() == b"measured"
    nowhere = msgspec.structs.replace(job, timing_cache="/proc/nope/own.cache")
    (told,) = keep_timing_cache(Tuned(), Tuned(), nowhere)
    assert "The timing cache cannot be kept in /proc/nope/own.cache: No such file or directory" in told
    place.unlink()
    place.mkdir()
    (told,) = keep_timing_cache(Tuned(), Tuned(), whole)
    assert "Is a directory" in told
    assert list(place.parent.iterdir()) == [place], "nothing half-written stays"
