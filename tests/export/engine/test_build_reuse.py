"""What a stopped build finished is taken by a build of the same alone: other options, profiles or TensorRTs build anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine import build as building
from edgevqa.export.engine.build import BuiltEngines, again_text, build
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.protocol import Built, Job
from edgevqa.export.engine.store import EngineStore
from edgevqa.runtime.plans import Version

Install = Callable[..., Any]
MakeJob = Callable[..., Job]
VERSION = (10, 3, 0, 30)
SHA256 = "1" * 64
BUILT = Built(
    version=VERSION,
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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(reference_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))


def stop_at(path: Path, count: int, **options: Any) -> None:
    """A build that is stopped when it has `count` engines."""

    def report(what: str, done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, BuildOptions(**options), report=report)


GIVEN: dict[str, Any] = {"target": "server-trt10", "batch": (1, 4)}


def changed(**other: Any) -> BuildOptions:
    given: dict[str, Any] = {**GIVEN, **other}
    return BuildOptions(**given)


OTHERS: list[dict[str, Any]] = [
    {"batch": (1, 8)},
    {"batch": (4,)},
    {"optimization_level": 1},
    {"workspace_bytes": 1_000_000},
    {"version_compatible": True},
    {"hardware_compatible": True},
    {"strip_weights": True},
    {"refit": True},
    {"rebuild": True},
]


def test_an_equal_build_goes_on(install: Install, path: Path, tmp_path: Path) -> None:
    trt = install()
    stop_at(path, 2, **GIVEN)
    before = len(trt.builds)
    limits: dict[str, Any] = {"memory_budget_bytes": 10**12, "timing_cache": str(tmp_path / "timings")}
    made = build(path, changed(**limits))
    assert len(made.reused) == 2, "what a build may take, and where it looks up times, changes no engine"
    assert len(trt.builds) == before + len(made.record.graphs) - 2


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_a_build_of_something_else_begins_anew(install: Install, path: Path, other: dict[str, Any]) -> None:
    trt = install()
    stop_at(path, 2, **GIVEN)
    before = len(trt.builds)
    made = build(path, changed(**other))
    assert made.reused == []
    assert len(trt.builds) == before + len(made.record.graphs)


def test_another_tensorrt_begins_anew(install: Install, path: Path) -> None:
    install()
    stop_at(path, 2, **GIVEN)
    install(version=(10, 4, 0, 26))
    made = build(path, BuildOptions(**GIVEN))
    assert (made.reused, made.record.tensorrt_version) == ([], (10, 4, 0, 26))


def test_a_damaged_plan_is_built_again(install: Install, path: Path, cache: Path) -> None:
    install()
    stop_at(path, 2, **GIVEN)
    first, _ = sorted(cache.rglob("plan.engine"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    made = build(path, BuildOptions(**GIVEN))
    assert len(made.reused) == 1
    _check_plans(made)


def _check_plans(made: BuiltEngines) -> None:
    for engine in made.record.graphs.values():
        plan = Path(made.bundle) / "engines" / made.key / engine.file
        assert plan.read_bytes()[:4] == b"ftrt"
        assert plan.read_bytes().endswith(b")"), "the last byte is as it was built"


def test_an_engine_of_the_bundle_is_not_taken_for_other_profiles(install: Install, path: Path) -> None:
    trt = install()
    build(path, BuildOptions(**GIVEN))
    before = len(trt.builds)
    made = build(path, changed(batch=(1, 8)))
    most = [max(side.max[0] for side in engine.profiles[-1].values()) for engine in made.record.graphs.values()]
    assert set(most) == {8}
    assert len(trt.builds) == before + len(made.record.graphs)


def _changed(job: Job, what: str) -> tuple[Job, str, dict[str, Any]]:
    """A job and a store that differ in one thing."""
    replace = msgspec.structs.replace
    same: dict[str, Any] = {"hashes": ["w"], "version": VERSION, "device": "Orin"}
    return {
        "graph": (replace(job, graph="other"), SHA256, same),
        "profiles": (replace(job, profiles=job.profiles[:1]), SHA256, same),
        "options": (replace(job, options=replace(job.options, refit=True)), SHA256, same),
        "onnx": (job, "2" * 64, same),
        "weights": (job, SHA256, {**same, "hashes": ["v"]}),
        "version": (job, SHA256, {**same, "version": (10, 3, 0, 31)}),
        "device": (job, SHA256, {**same, "device": "Thor"}),
    }[what]


@pytest.mark.parametrize("what", ["graph", "profiles", "options", "onnx", "weights", "version", "device"])
def test_each_thing_that_decides_an_engine_is_in_its_key(make_job: MakeJob, what: str) -> None:
    job = make_job()
    Path(job.engine).write_bytes(b"plan")
    version: Version = VERSION
    store = EngineStore(hashes=["w"], version=version, device="Orin")
    store.keep(job, SHA256, BUILT)
    other, onnx, given = _changed(job, what)
    assert EngineStore(**given).recall(other, onnx) is None
    found = EngineStore(hashes=["w"], version=version, device="Orin").recall(job, SHA256)
    assert found is not None
    assert (found[0].read_bytes(), found[1]) == (b"plan", BUILT)


def test_an_engine_of_a_stopped_build_is_described_as_it_was_built(
    install: Install, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    stop_at(path, 1, **GIVEN)

    plain: Callable[..., Built] = vars(building)["run_job"]
    jobs: list[str] = []

    def listed(job: Job, tell: Any, **more: Any) -> Built:
        jobs.append(job.graph)
        return plain(job, tell, **more)

    monkeypatch.setattr(building, "run_job", listed)
    made = build(path, BuildOptions(**GIVEN))
    assert made.reused
    assert made.reused[0] not in jobs
    assert len(made.record.graphs[made.reused[0]].profiles) == 2


@pytest.mark.parametrize("as_path", [True, False])
def test_a_timing_cache_of_ones_own_reaches_the_building_process(
    install: Install, path: Path, tmp_path: Path, as_path: bool
) -> None:
    """Which is told in JSON."""
    install()
    place = tmp_path / "own.cache"
    given: Any = place if as_path else str(place)
    made = build(path, changed(timing_cache=given))
    assert place.read_bytes() == b"timings:gpu0" + b"+tactics" * len(made.record.graphs)


def test_a_build_anew_keeps_nothing_for_later(install: Install, path: Path, cache: Path) -> None:
    """A later one would not look for it."""
    install()
    stop_at(path, 2, **GIVEN, rebuild=True)
    assert list(cache.rglob("plan.engine")) == []


def test_what_is_not_kept_is_told_when_the_build_is_stopped(
    install: Install, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", "/proc/nope")
    unkept: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, BuildOptions(**GIVEN), report=report, unkept=unkept)
    assert "What a stopped build finished cannot be kept in /proc/nope" in unkept[0]


@pytest.mark.parametrize(
    ("rebuild", "unkept", "text"),
    [
        (False, False, "Run the command again: engines that are finished are kept."),
        (False, True, "Run the command again."),
        (
            True,
            False,
            "Run the command again. With --rebuild no finished engine is kept; run again without --rebuild to keep them.",
        ),
    ],
)
def test_only_what_is_true_is_said_of_running_again(rebuild: bool, unkept: bool, text: str) -> None:
    assert again_text(rebuild=rebuild, unkept=unkept) == text
