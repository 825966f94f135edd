"""Engines that the bundle has from an equal build are kept as they are; everything else is built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine import plan
from edgevqa.export.engine.build import BuiltEngines, build
from edgevqa.export.engine.estimate import estimate_bytes
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.machine import Gpu, read_machine

Install = Callable[..., Any]
GIVEN: dict[str, Any] = {"target": "server-trt10", "batch": (1, 4)}


@pytest.fixture
def path(reference_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))


def again(path: Path, **changes: Any) -> BuiltEngines:
    return build(path, BuildOptions(**{**GIVEN, **changes}))


def test_an_equal_build_keeps_what_is_there(path: Path, install: Install) -> None:
    install()
    first = again(path)
    before = {file: file.read_bytes() for file in (path / "engines").rglob("*") if file.is_file()}
    second = again(path, memory_budget_bytes=10**12)
    assert (first.reused, second.reused) == ([], list(first.record.graphs)), "a budget changes no engine"
    assert second.record == first.record
    assert {file: file.read_bytes() for file in (path / "engines").rglob("*") if file.is_file()} == before
    assert all(report.passed for report in Bundle.open(path).verify())


@pytest.mark.parametrize(
    "changes",
    [{"rebuild": True}, {"batch": (1, 8)}, {"optimization_level": 2}, {"workspace_bytes": 10**9}, {"refit": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_build_keeps_nothing(path: Path, install: Install, changes: dict[str, Any]) -> None:
    install()
    again(path)
    assert not again(path, **changes).reused


def test_another_tensorrt_keeps_nothing(path: Path, install: Install) -> None:
    install()
    again(path)
    install(version=(10, 9, 0, 34))
    assert not again(path).reused


def test_engines_of_older_graphs_are_built_again(path: Path, install: Install) -> None:
    """They alone, so what the others took does not count against the memory budget."""
    install()
    again(path)
    bundle = Bundle.open(path)
    spec = bundle.variant("fp32")
    with BundleWriter.extend(bundle) as writer:
        changed = writer.path(spec.graphs["projector"].file.path)
        changed.write_bytes(bundle.graph_path("fp32", "projector").read_bytes() + b"\x8a\x02\x00")
        file = writer.describe(spec.graphs["projector"].file.path)
        graphs = {**spec.graphs, "projector": msgspec.structs.replace(spec.graphs["projector"], file=file)}
        variants = {"fp32": msgspec.structs.replace(spec, graphs=graphs)}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    engines = bundle.root / "engines/server-trt10/fp32"
    before = {name: (engines / f"{name}.engine").read_bytes() for name in graphs}
    needed = {name: estimate_bytes(graph, spec.numerics) for name, graph in graphs.items()}
    assert needed["projector"] < max(needed.values())
    reused = again(path, memory_budget_bytes=needed["projector"]).reused
    assert reused == [name for name in graphs if name != "projector"]
    assert all((engines / f"{name}.engine").read_bytes() == before[name] for name in reused)


def test_a_damaged_set_is_told_and_built_again(path: Path, install: Install) -> None:
    """Its other engines too: the writer sets the whole of it aside."""
    install()
    first = again(path)
    engine = path / "engines/server-trt10/fp32/projector.engine"
    whole = engine.read_bytes()
    engine.unlink()
    engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    second = again(path)
    assert second.reused == []
    assert all(report.passed for report in Bundle.open(path).verify())
    (told,) = second.warnings["these engines"]
    assert told.startswith(f"The engines 'server-trt10/fp32' of {path} are damaged: {engine} has SHA-256 ")
    assert told.endswith("changed or damaged. All of them were built again or taken from a build that was stopped.")
    assert "these engines" not in first.warnings | again(path).warnings


def test_engines_that_are_kept_are_recorded_where_they_were_built(
    path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    machine = read_machine()
    monkeypatch.setattr(plan, "read_machine", lambda: machine)
    gpu = Gpu(name="A100", driver="570.1", memory_mb=1, compute_capability="8.0")
    machine = msgspec.structs.replace(machine, gpus=[gpu], jetson=None)
    first = again(path)
    machine = msgspec.structs.replace(machine, gpus=[msgspec.structs.replace(gpu, driver="999.9")])
    second = again(path)
    assert (second.reused, second.record) == (list(first.record.graphs), first.record)
    assert first.record.driver == "570.1"
    assert again(path, rebuild=True).record.driver == "999.9"


def test_a_budget_that_nothing_needs_refuses_nothing(path: Path, install: Install) -> None:
    trt = install()
    with pytest.raises(CheckFailed, match="--memory-budget is 50 MB"):
        again(path, memory_budget_bytes=50_000_000)
    assert not trt.builds, "it is looked at before the work"
    again(path)
    assert again(path, memory_budget_bytes=50_000_000).reused
    with pytest.raises(CheckFailed, match="--memory-budget is 50 MB"):
        again(path, memory_budget_bytes=50_000_000, rebuild=True)
