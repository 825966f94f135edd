"""engine.json after a build, on faked machines and a simulated builder: what was really built, where, and of what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine import plan
from edgevqa.export.engine.build import build
from edgevqa.export.engine.flavours import load_toolkit, refuse_impossible
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import EngineRecord, load_record
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.machine import Gpu, Jetson, Machine
from edgevqa.runtime.manifest import CALIBRATION_KEY

Install = Callable[..., Any]
MACHINE = Machine(
    python="CPython 3.10.12",
    system="Linux",
    architecture="aarch64",
    cpu="Cortex-A78AE",
    instruction_sets=[],
    cores=6,
    usable_cores=6,
    memory_mb=8000,
    memory_free_mb=6000,
    memory_limit_mb=None,
    gpus=[],
    jetson=None,
)
ORIN = msgspec.structs.replace(
    MACHINE, jetson=Jetson(model="NVIDIA Jetson AGX Orin Developer Kit", l4t="36.4.3", jetpack="6.1 or 6.2")
)
SERVER = msgspec.structs.replace(
    MACHINE,
    architecture="x86_64",
    gpus=[Gpu(name="NVIDIA A100", driver="570.86.15", memory_mb=81920, compute_capability="8.0")],
)


@pytest.fixture
def path(reference_bundle: Path, tmp_path: Path) -> Path:
    """With a second variant that calls itself INT8, made with a calibration."""
    place = Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(place)
    with BundleWriter.extend(bundle) as writer:
        spec = msgspec.structs.replace(
            bundle.variant("fp32"), precision="int8", numerics="s8-fp16", recipe={CALIBRATION_KEY: "c" * 64}
        )
        variants = {**bundle.manifest.variants, "int8-s8-fp16": spec}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    return place


def built(path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, **options: Any) -> EngineRecord:
    monkeypatch.setattr(plan, "read_machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    given = BuildOptions(**options)
    made = build(path, given)
    assert load_record(Bundle.open(path), made.key) == made.record
    return made.record


def fields(record: EngineRecord, *left_out: str) -> dict[str, Any]:
    told = msgspec.to_builtins(record)
    return {name: value for name, value in told.items() if name not in ("graphs", "format", *left_out)}


def test_a_jetson_is_recorded(install: Install, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(dla_cores=2, arch="aarch64")
    record = built(
        path,
        monkeypatch,
        ORIN,
        target="jetson-orin-jp6",
        precision="int8",
        batch=(1,),
        version_compatible=True,
        dla_core=1,
        workspace_bytes=1_000_000_000,
    )
    assert fields(record) == {
        "target": "jetson-orin-jp6",
        "variant": "int8-s8-fp16",
        "precision": "int8",
        "numerics": "s8-fp16",
        "flavour": "tensorrt",
        "tensorrt_version": (10, 3, 0, 30),
        "os": "linux",
        "arch": "aarch64",
        "device": None,
        "compute_capabilities": ["8.7"],
        "hardware_compatibility": "none",
        "version_compatible": True,
        "weight_stripped": False,
        "refittable": False,
        "dla_core": 1,
        "driver": None,
        "jetpack": "6.1 or 6.2",
        "l4t": "36.4.3",
        "calibration_sha256": "c" * 64,
        "options": {"batch": "1", "workspace_bytes": 1_000_000_000},
    }


def test_a_server_is_recorded(install: Install, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("tensorrt", (11, 4, 0, 1))
    record = built(
        path,
        monkeypatch,
        SERVER,
        target="server-trt11",
        precision="fp32",
        batch=(1, 4),
        max_question=20,
        hardware_compatible=True,
        strip_weights=True,
        refit=True,
        optimization_level=2,
    )
    assert fields(record) == {
        "target": "server-trt11",
        "variant": "fp32",
        "precision": "fp32",
        "numerics": "fp32",
        "flavour": "tensorrt",
        "tensorrt_version": (11, 4, 0, 1),
        "os": "linux",
        "arch": "x86_64",
        "device": "NVIDIA A100",
        "compute_capabilities": ["8.0"],
        "hardware_compatibility": "ampere_plus",
        "version_compatible": False,
        "weight_stripped": True,
        "refittable": True,
        "dla_core": None,
        "driver": "570.86.15",
        "jetpack": None,
        "l4t": None,
        "calibration_sha256": None,
        "options": {"batch": "1,4", "max_question": 20, "optimization_level": 2},
    }


def test_tensorrt_rtx_is_recorded_for_the_gpus_that_were_named(
    install: Install, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU at hand was not asked."""
    install("tensorrt_rtx", (1, 7, 1, 116))
    record = built(
        path, monkeypatch, SERVER, target="rtx", precision="fp32", batch=(1,), compute_capabilities=("8.9", "12.0")
    )
    assert (record.compute_capabilities, record.device, record.tensorrt_version) == (
        ["8.9", "12.0"],
        None,
        (1, 7, 1, 116),
    )


def test_each_engine_is_recorded_with_what_tensorrt_had(
    install: Install, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install("tensorrt", (11, 4, 0, 1))
    record = built(path, monkeypatch, SERVER, target="server-trt11", precision="fp32", batch=(1, 4))
    bundle = Bundle.open(path)
    for (name, engine), told in zip(record.graphs.items(), trt.builds, strict=True):
        found = [
            {tensor: (tuple(each.min), tuple(each.opt), tuple(each.max)) for tensor, each in profile.items()}
            for profile in engine.profiles
        ]
        assert found == told.profiles, name
        assert engine.onnx_sha256 == bundle.graph("fp32", name).file.sha256
        assert engine.size_bytes == (path / "engines/server-trt11/fp32" / engine.file).stat().st_size


REFUSED: list[tuple[str, str, Any, dict[str, Any], list[str]]] = [
    ("rtx", "tensorrt_rtx", (1, 7, 1, 116), {"strip_weights": True}, ["--strip-weights: TensorRT-RTX needs a GPU"]),
    ("rtx", "tensorrt_rtx", (1, 7, 1, 116), {"hardware_compatible": True}, ["takes --compute-capability"]),
    ("rtx", "tensorrt_rtx", (1, 7, 1, 116), {"version_compatible": True}, ["never cross a release"]),
    ("rtx", "tensorrt_rtx", (1, 7, 1, 116), {"refit": True}, ["--refit"]),
    ("jetson-orin-jp6", "tensorrt", (10, 3, 0, 30), {"hardware_compatible": True}, ["no Jetson"]),
    ("jetson-thor-jp7", "tensorrt", (10, 13, 3, 9), {"hardware_compatible": True}, ["no Jetson"]),
    (
        "jetson-orin-jp6",
        "tensorrt",
        (10, 3, 0, 30),
        {"hardware_compatible": True, "strip_weights": True},
        ["--hardware-compatible"],
    ),
]


@pytest.mark.parametrize(("name", "module", "version", "given", "reasons"), REFUSED)
def test_impossible_options_are_refused_with_the_reason(
    install: Install, name: str, module: str, version: Any, given: dict[str, Any], reasons: list[str]
) -> None:
    install(module, version, arch="aarch64" if name.startswith("jetson") else "x86_64")
    options = BuildOptions(target=name, **given)
    with pytest.raises(InputError, match="This build cannot be made: ") as caught:
        refuse_impossible(options, load_toolkit(options.row))
    for reason in reasons:
        assert reason in str(caught.value)


def test_a_tensorrt_without_stripped_plans_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = install()
    monkeypatch.setattr(trt, "BuilderFlag", type("BuilderFlag", (), {"REFIT": 1}))
    options = BuildOptions(target="server-trt10", strip_weights=True)
    with pytest.raises(InputError, match=r"--strip-weights: .* TensorRT 10 or later has it"):
        refuse_impossible(options, load_toolkit(options.row))


@pytest.mark.parametrize(
    ("name", "version"),
    [("jetson-orin-jp6", (10, 3, 0, 30)), ("server-trt10", (10, 3, 0, 30)), ("server-trt11", (11, 4, 0, 1))],
)
def test_what_a_tensorrt_has_is_not_refused(install: Install, name: str, version: Any) -> None:
    install("tensorrt", version, arch="aarch64" if name.startswith("jetson") else "x86_64")
    options = BuildOptions(
        target=name,
        version_compatible=True,
        strip_weights=True,
        refit=True,
        timing_cache="timings",
        hardware_compatible=not name.startswith("jetson"),
        dla_core=0 if name == "jetson-orin-jp6" else None,
    )
    toolkit = load_toolkit(options.row)
    refuse_impossible(options, toolkit)
    assert toolkit.version[:3] == version[:3]
