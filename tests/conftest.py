"""Fixtures that several rooms share: golden data of the published model, and bundles exported from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent
PACKAGED = HERE / "golden"
SHARED = HERE.parents[1] / "shared" / "golden" / "dev"
GOLDEN = SHARED if SHARED.is_dir() else PACKAGED
VARIANTS = ["late", "sparse", "plain"] + (["all", "early", "late2", "late3"] if GOLDEN is SHARED else [])
CASES = ["s0", "s1", "s2", "s3", "b"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory is left alone: hashes and choices of tests are remembered in a folder of their own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVQA_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """The folder that the yaml files' names are relative to."""
    return GOLDEN


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Each golden variant."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """All golden arrays of a variant."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / name / "golden.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle exported from a golden variant, made once a session."""
    made: dict[str, Path] = {}

    def export_once(name: str) -> Path:
        from edgevqa.export import ExportOptions, export

        if name not in made:
            made[name] = tmp_path_factory.mktemp("golden") / f"{name}.bundle"
            options = ExportOptions(config=GOLDEN / name / "config.yaml", root=GOLDEN, verify=False)
            export(str(GOLDEN / name / "ckpt.pth"), made[name], options)
        return made[name]

    return export_once


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the packaged reference model, exported once a session. Copy it before you add to it."""
    from edgevqa.export import ExportOptions, export

    path = tmp_path_factory.mktemp("reference") / "reference.bundle"
    export("reference", path, ExportOptions(verify=False))
    return path


@pytest.fixture(scope="session")
def official_checkpoints() -> ModuleType:
    """The script that makes checkpoints in the published format."""
    path = HERE.parent / "benchmarks" / "official_checkpoint.py"
    spec = importlib.util.spec_from_file_location("official_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def official(official_checkpoints: ModuleType, tmp_path: Path, golden_root: Path) -> Callable[..., Path]:
    """Make a tiny official checkpoint; returns its folder."""
    tokenizer = golden_root / "pretrained" / "t5-tiny" / "tokenizer.json"

    def write(**options: object) -> Path:
        path: Path = official_checkpoints.write(tmp_path / "official", tokenizer=tokenizer, **options)
        return path.parent

    return write
