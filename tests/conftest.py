"""Fixtures that several rooms share: golden data of the published model, and bundles exported from it."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(
    100_000, 50, 50
)  # torch's tracer makes millions of objects, which the usual thresholds walk again and again
PACKAGED = HERE / "golden"
SHARED = HERE.parents[1] / "shared" / "golden" / "dev"
GOLDEN = SHARED if SHARED.is_dir() else PACKAGED
VARIANTS = ["late", "sparse", "plain"] + (["all", "early", "late2", "late3"] if GOLDEN is SHARED else [])
CASES = ["s0", "s1", "s2", "s3", "b"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory is left alone: hashes and choices of tests are remembered in a folder of their own.

    What `auto` would choose depends on the machine, so it is ONNX Runtime but in the tests that are about choosing.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVQA_CACHE_DIR", str(folder))
        patch.setenv("EDGEVQA_BACKEND", "onnxruntime")
        yield folder


@pytest.fixture
def openvino() -> Any:
    """OpenVINO, imported without reporting that over the network, as `import openvino` would."""
    from edgevqa.runtime.sessions import BACKENDS
    from edgevqa.runtime.sessions.ov import load_openvino

    if not BACKENDS["openvino"].installed():
        pytest.skip("openvino is not installed")
    return load_openvino()


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


@pytest.fixture(scope="session")
def two_precisions(reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference bundle with a second variant, called INT8, whose weights are noisy: some of its answers change."""
    import msgspec

    from edgevqa.runtime.bundle import Bundle
    from edgevqa.runtime.bundle_writer import BundleWriter
    from edgevqa.runtime.manifest import VariantSpec

    path = tmp_path_factory.mktemp("two") / "two.bundle"
    shutil.copytree(reference_bundle, path)
    bundle, name = Bundle.open(path), "int8-u8-fp32"
    weights = bundle.weights_path("fp32")
    assert weights is not None
    exact = np.fromfile(weights, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal(exact.size).astype(np.float32)
    noisy = np.where(np.abs(exact) > 1e-20, exact * (1 + np.float32(0.5) * noise), exact)  # leave integers alone
    layers = [{"name": "vision.fc1", "graph": "vision_trunk", "local_error": 0.25, "high": True, "reason": "<worst>"}]
    with BundleWriter.extend(bundle) as writer:
        graphs = {
            graph: msgspec.structs.replace(
                spec, file=writer.add_file(bundle.graph_path("fp32", graph), f"graphs/{name}/{graph}.onnx")
            )
            for graph, spec in bundle.manifest.variants["fp32"].graphs.items()
        }
        variant = VariantSpec(
            precision="int8",
            numerics="u8-fp32",
            graphs=graphs,
            weights=writer.add_bytes(noisy.astype(np.float32).tobytes(), f"graphs/{name}/weights.data"),
            report=writer.add_bytes(msgspec.json.encode({"layers": layers}), f"calibration/{name}.json"),
        )
        writer.finish(msgspec.structs.replace(bundle.manifest, variants={**bundle.manifest.variants, name: variant}))
    return path
