"""Engines that the bundle has from an equal build are kept as they are; everything else is built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine.build import BuiltEngines, build
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter

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
    reused = again(path).reused
    assert reused == [name for name in graphs if name != "projector"]
    assert all((engines / f"{name}.engine").read_bytes() == before[name] for name in reused)
