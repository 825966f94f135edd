"""`edgevqa inspect`: variants that are quantised otherwise, and engines of other machines."""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.cli import engine_tables
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, decode_record, encode_record
from edgevqa.runtime.machine import Gpu, Machine, read_machine

Invoke = Callable[..., tuple[int, str, str]]
DECODER_W4 = "int8-u8-fp32-decoder-w4"


@pytest.fixture
def weight_only(fake_bundle: Bundle) -> Bundle:
    """With a variant of which one graph has weights in 4 bits, and one is float."""
    recipe = {"weight_only": {"projector": "int4"}, "high_graphs": ["vision_trunk"]}
    with BundleWriter.extend(fake_bundle) as writer:
        usual = fake_bundle.variant("fp32")
        files = {
            name: writer.add_file(fake_bundle.graph_path("fp32", name), f"graphs/{DECODER_W4}/{name}.onnx")
            for name in usual.graphs
        }
        spec = msgspec.structs.replace(
            usual,
            precision="int8",
            numerics="u8-fp32",
            weights=None,
            recipe=recipe,
            graphs={
                name: msgspec.structs.replace(graph, file=files[name], opset=21) for name, graph in usual.graphs.items()
            },
        )
        variants = {**fake_bundle.manifest.variants, DECODER_W4: spec}
        return writer.finish(msgspec.structs.replace(fake_bundle.manifest, variants=variants))


def test_what_is_quantised_otherwise_is_told(invoke: Invoke, weight_only: Bundle) -> None:
    code, out, err = invoke("inspect", weight_only.root)
    assert (code, err) == (0, "")
    table = out.partition("quantised otherwise")[2]
    lines = {
        name: next(line for line in table.splitlines() if line.split()[:1] == [name]) for name in ("fp32", DECODER_W4)
    }
    assert "projector weight-int4, vision_trunk float" in lines[DECODER_W4]
    assert "weight-" not in lines["fp32"]
    code, out, _ = invoke("inspect", weight_only.root, "--json")
    assert code == 0
    found = json.loads(out)["variants"]
    assert found[DECODER_W4] == {
        "size_bytes": 1400,
        "weight_only": {"projector": "int4"},
        "high_graphs": ["vision_trunk"],
    }
    assert found["fp32"]["weight_only"] == {}
    assert found["fp32"]["size_bytes"] == sum(file.size_bytes for file in weight_only.variant("fp32").files())


def engine_record(**changes: Any) -> EngineRecord:
    given: dict[str, Any] = {
        "format": FORMAT,
        "target": "rtx",
        "variant": "fp32",
        "precision": "fp32",
        "numerics": "fp32",
        "flavour": "tensorrt-rtx",
        "tensorrt_version": (1, 7, 1, 116),
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "device": None,
        "compute_capabilities": ["8.9"],
        "hardware_compatibility": "none",
        "version_compatible": False,
        "weight_stripped": False,
        "refittable": False,
        "dla_core": None,
        "driver": None,
        "jetpack": None,
        "l4t": None,
        "calibration_sha256": None,
        "options": {},
        "graphs": {},
    }
    return EngineRecord(**{**given, **changes})


def with_gpu(capability: str) -> Callable[[], Machine]:
    gpu = Gpu(name="A GPU", driver="580.1", memory_mb=24_000, compute_capability=capability)
    return lambda: msgspec.structs.replace(read_machine(), gpus=[gpu], jetson=None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"os": "plan9"}, "was built for plan9 on "),
        ({"arch": "m68k"}, " on m68k; this is "),
        ({"compute_capabilities": ["8.6"]}, "built for compute capability 8.6; this GPU (A GPU) has 8.9"),
    ],
)
def test_an_engine_record_of_another_machine_is_shown_and_ends_with_3(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(engine_tables, "read_machine", with_gpu("8.9"))
    path = tmp_path / "engine.json"
    path.write_bytes(encode_record(engine_record()))
    code, out, err = invoke("inspect", path)
    assert (code, err) == (0, "")
    assert "Nothing speaks against this machine" in out
    path.write_bytes(encode_record(engine_record(**changes)))
    code, out, err = invoke("inspect", path)
    assert code == 3
    assert "tensorrt-rtx 1.7.1.116" in out
    assert err.startswith("error: They do not fit this machine: ")
    assert told in err
    code, out, err = invoke("inspect", path, "--json")
    assert code == 3
    found = json.loads(out)
    assert found["fits_this_machine"] is False
    assert told in found["fits"]


def test_without_a_gpu_nothing_is_refused(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = msgspec.structs.replace(read_machine(), gpus=[], jetson=None)
    monkeypatch.setattr(engine_tables, "read_machine", lambda: machine)
    path = tmp_path / "engine.json"
    path.write_bytes(encode_record(engine_record()))
    code, out, err = invoke("inspect", path)
    assert (code, err) == (0, "")
    assert "shows no NVIDIA GPU" in out
    assert json.loads(invoke("inspect", path, "--json")[1])["fits_this_machine"] is None


NAMES = ("projector", "vision_trunk")


VERSIONS = {"tensorrt": (10, 3, 0, 30), "tensorrt-rtx": (1, 7, 1, 116)}


def plan_bytes(flavour: str) -> bytes:
    """A plan's header and something after it; that of TensorRT-RTX tells its size."""
    tag, version = b"vtrt" if flavour == "tensorrt-rtx" else b"ftrt", VERSIONS[flavour]
    return struct.pack("<4sI8xQ4B", tag, 0, 500 if tag == b"vtrt" else 0, *version).ljust(500, b"x")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engines(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine.json for this machine, with the two engines that it names."""
    monkeypatch.setattr(engine_tables, "read_machine", with_gpu("8.9"))
    data = plan_bytes(request.param)
    graph = GraphEngine(
        file="",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        onnx_sha256="",
        weights_sha256=None,
        profiles=[],
        inputs=[],
        outputs=[],
        high_layers=[],
        seconds=1.0,
        peak_memory_mb=1.0,
    )
    for name in NAMES:
        (tmp_path / f"{name}.engine").write_bytes(data)
    graphs = {name: msgspec.structs.replace(graph, file=f"{name}.engine") for name in NAMES}
    path = tmp_path / "engine.json"
    made = engine_record(flavour=request.param, tensorrt_version=VERSIONS[request.param], graphs=graphs)
    path.write_bytes(encode_record(made))
    return path


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"y")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = [
    (Path.unlink, 1, "missing", "is missing: engine.json names it"),
    (change, 1, "DIFFERS from engine.json: damaged or replaced", "is not the engine that engine.json names"),
    (cut, 2, "cut off", "it was cut off"),
]


@pytest.mark.parametrize(("damage", "expected", "told", "why"), DAMAGE)
def test_the_engines_beside_an_engine_record_are_checked(
    invoke: Invoke, engines: Path, damage: Callable[[Path], None], expected: int, told: str, why: str
) -> None:
    code, out, err = invoke("inspect", engines)
    assert (code, err) == (0, "")
    assert "lies beside it, as recorded" in out
    assert json.loads(invoke("inspect", engines, "--json")[1])["file_hashes"] == dict.fromkeys(NAMES, "as recorded")
    hit = engines.parent / "projector.engine"
    damage(hit)
    code, out, err = invoke("inspect", engines)
    assert (code, "as recorded" in out) == (expected, False)
    assert err.startswith(f"error: {hit} ")
    assert why in err
    assert "vision_trunk" not in err
    code, out, err = invoke("inspect", engines, "--json")
    assert (code, why in err) == (expected, True)
    found = json.loads(out)["file_hashes"]
    assert found["projector"].startswith(told)
    assert found["vision_trunk"] == "as recorded"
    if hit.exists():
        assert invoke("inspect", hit)[0] == expected, "a plan alone is judged otherwise"


def test_all_that_is_wrong_is_told_and_the_worst_decides(
    invoke: Invoke, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (engines.parent / f"{name}.engine" for name in NAMES)
    monkeypatch.setattr(engine_tables, "read_machine", with_gpu("8.6"))
    change(first)
    for path in (engines, first):
        code, _, err = invoke("inspect", path)
        assert code == 1
        assert err.startswith(f"error: {first} is not the engine")
        assert "They do not fit this machine: " in err
    cut(second)
    code, _, err = invoke("inspect", engines)
    assert code == 2
    assert err.startswith(f"error: {second} has 499 bytes")
    assert f"{first} is not the engine" in err
    assert "They do not fit this machine: " in err


@pytest.mark.parametrize("change", [{"tensorrt_version": (10, 3, 0, 31)}, {"tensorrt_version": (1, 7, 1, 117)}])
def test_a_record_that_its_plans_contradict_is_refused(invoke: Invoke, engines: Path, change: dict[str, Any]) -> None:
    record = decode_record(engines.read_bytes(), where="it")
    engines.write_bytes(encode_record(msgspec.structs.replace(record, **change)))
    for path in (engines, engines.parent / "projector.engine"):
        code, out, err = invoke("inspect", path)
        assert code == 1
        assert f"{engines.parent / 'projector.engine'} is a plan of {record.flavour} " in err
        assert "Every engine that it names" not in out
        assert "edgevqa build BUNDLE --target rtx --precision fp32" in err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size_bytes": -1}, "Expected `int` >= 0"),
        ({"file": "../other/projector.engine"}, "names the file '../other/projector.engine'"),
        ({"file": "/etc/passwd"}, "names the file '/etc/passwd'"),
        ({"file": "sub/projector.engine"}, "the name of a file beside it"),
        ({"file": ""}, "names the file ''"),
    ],
)
def test_a_record_of_files_elsewhere_or_no_sizes_is_refused(
    invoke: Invoke, engines: Path, change: dict[str, Any], told: str
) -> None:
    record = decode_record(engines.read_bytes(), where="it")
    graphs = {**record.graphs, "projector": msgspec.structs.replace(record.graphs["projector"], **change)}
    engines.write_bytes(encode_record(msgspec.structs.replace(record, graphs=graphs)))
    code, out, err = invoke("inspect", engines)
    assert (code, out) == (2, "")
    assert told in err


def test_a_huge_file_is_not_read_whole(invoke: Invoke, tmp_path: Path, engines: Path) -> None:
    """Sparse: reading it whole would take more memory than the machine has."""
    huge = tmp_path / "huge.json"
    with huge.open("wb") as stream:
        stream.truncate(1 << 42)
    code, out, err = invoke("inspect", huge)
    assert (code, out) == (2, "")
    assert f"{huge} is over 67,108,864 bytes; expected an engine.json" in err
    huge.rename(engines)
    code, _, err = invoke("inspect", engines.parent / "projector.engine")
    assert code == 2
    assert "engine.json is over 67,108,864 bytes" in err
