"""Plans and engine records are understood, and refused by name, without TensorRT."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import (
    FORMAT,
    EngineRecord,
    GraphEngine,
    Here,
    ShapeRange,
    check_engine,
    check_record,
    decode_record,
    encode_record,
    here,
    load_record,
)
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.machine import Gpu, Jetson, parse_gpus, read_machine
from edgevqa.runtime.manifest import EngineSet
from edgevqa.runtime.plans import parse_header, read_header, read_whole
from edgevqa.runtime.targets import TARGETS, target

KEY = "jetson-orin-jp6/fp32"
VERSION = (10, 3, 0, 30)
ORIN = Here(
    os="linux", arch="aarch64", compute_capability="8.7", device="Orin", flavour="tensorrt", tensorrt_version=VERSION
)


def plan(tag: bytes = b"ftrt", version: tuple[int, ...] = VERSION) -> bytes:
    return tag + struct.pack("<I", 239) + bytes(16) + bytes(version) + bytes(100)


def graph_engine(**changes: Any) -> GraphEngine:
    data = plan()
    given: dict[str, Any] = {
        "file": "projector.engine",
        "sha256": sha256_bytes(data),
        "size_bytes": len(data),
        "onnx_sha256": "0" * 64,
        "weights_sha256": None,
        "profiles": [{"image_states": ShapeRange(min=[1, 17, 64], opt=[1, 17, 64], max=[8, 17, 64])}],
        "inputs": [],
        "outputs": [],
        "high_layers": [],
        "seconds": 1.0,
        "peak_memory_mb": 100.0,
    }
    return GraphEngine(**{**given, **changes})


def record(**changes: Any) -> EngineRecord:
    given: dict[str, Any] = {
        "format": FORMAT,
        "target": "jetson-orin-jp6",
        "variant": "fp32",
        "precision": "fp32",
        "numerics": "fp32",
        "flavour": "tensorrt",
        "tensorrt_version": VERSION,
        "os": "linux",
        "arch": "aarch64",
        "device": "Orin",
        "compute_capabilities": ["8.7"],
        "hardware_compatibility": "none",
        "version_compatible": False,
        "weight_stripped": False,
        "refittable": False,
        "dla_core": None,
        "driver": None,
        "jetpack": "6.1 or 6.2",
        "l4t": "36.4",
        "calibration_sha256": None,
        "options": {"optimization_level": 3},
        "graphs": {"projector": graph_engine()},
    }
    return EngineRecord(**{**given, **changes})


@pytest.fixture
def with_engine(fake_bundle: Bundle) -> Callable[..., tuple[Bundle, EngineRecord]]:
    """Add one engine to the bundle."""

    def add(data: bytes = plan(), **changes: Any) -> tuple[Bundle, EngineRecord]:
        variant = fake_bundle.manifest.variants["fp32"]
        engine = graph_engine(
            **{
                "onnx_sha256": variant.graphs["projector"].file.sha256,
                "weights_sha256": variant.weights.sha256 if variant.weights else None,
                **changes,
            }
        )
        made = record(graphs={"projector": engine})
        with BundleWriter.extend(fake_bundle) as writer:
            file = writer.add_bytes(data, f"engines/{KEY}/projector.engine")
            entry = EngineSet(
                target=made.target,
                variant="fp32",
                record=writer.add_bytes(encode_record(made), f"engines/{KEY}/engine.json"),
                engines={"projector": file},
            )
            manifest = msgspec.structs.replace(fake_bundle.manifest, engines={KEY: entry})
            return writer.finish(manifest), made

    return add


def test_header_says_flavour_and_version(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(plan(b"vtrt", (1, 7, 1, 116)))
    header = read_header(tmp_path / "a.engine")
    assert (header.flavour, header.version) == ("tensorrt-rtx", (1, 7, 1, 116))


def rtx_plan(version: tuple[int, ...] = (1, 7, 1, 116), serialization: int = 0) -> bytes:
    """As TensorRT-RTX lays its plans out: the whole size from byte 16."""
    return b"vtrt" + struct.pack("<I8xQ", serialization, 128) + bytes(version) + bytes(100)


@pytest.mark.parametrize(("change", "told"), [(-1, "127 bytes; its header says 128: it was cut off"), (3, "was added")])
def test_a_plan_of_rtx_that_is_not_whole_is_refused(tmp_path: Path, change: int, told: str) -> None:
    path = tmp_path / "a.engine"
    path.write_bytes(rtx_plan())
    assert read_whole(path).size_bytes == 128
    path.write_bytes((rtx_plan() + bytes(8))[: 128 + change])
    with pytest.raises(BundleError, match=told):
        read_whole(path)


@pytest.mark.parametrize("data", [plan(), rtx_plan((1, 6, 0, 1)), rtx_plan(serialization=239)])
def test_no_size_is_read_where_it_is_not_known_to_be(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.engine").write_bytes(data[:-1])
    assert read_whole(tmp_path / "a.engine").size_bytes is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\x08\x0a" + bytes(100), "an ONNX graph"),
        (b"PK\x03\x04" + bytes(100), "no TensorRT plan"),
    ],
)
def test_what_is_no_plan_is_said(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_header(data, where="x.engine")


def test_record_survives_its_file() -> None:
    assert decode_record(encode_record(record()), where="engine.json") == record()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no engine record"),
        (encode_record(record()).replace(b'"format": 1', b'"format": 7'), "format 7"),
        (encode_record(record()).replace(b'"os"', b'"system"'), "no engine record"),
    ],
)
def test_broken_records_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode_record(data, where="engine.json")


def test_what_fits_is_accepted() -> None:
    check_record(record(), ORIN, where="e")
    check_record(record(), Here(os="linux", arch="aarch64"), where="e")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"arch": "x86_64"}, "built for linux on aarch64; this is linux on x86_64"),
        ({"compute_capability": "8.6", "device": "RTX 3090"}, r"8.7; this GPU \(RTX 3090\) has 8.6"),
        ({"tensorrt_version": (10, 3, 0, 31)}, "10.3.0.30; here is 10.3.0.31"),
        (
            {"flavour": "tensorrt-rtx", "tensorrt_version": (1, 7, 1, 116)},
            "is for tensorrt; what runs here is tensorrt-rtx",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(place: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        check_record(record(), msgspec.structs.replace(ORIN, **place), where="e")
    assert str(caught.value).endswith("edgevqa build BUNDLE --target jetson-orin-jp6 --precision fp32")


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ((10, 3, 0, 30), True),
        ((10, 16, 2, 10), True),
        ((11, 0, 0, 1), True),
        ((10, 2, 0, 9), False),
        ((12, 0, 0, 1), False),
        ((10, 3, 0, 0), True),
        ((10, 2, 0, 0), False),
    ],
)
def test_version_compatible_engines_go_up_one_major(version: tuple[int, int, int, int], fits: bool) -> None:
    place = msgspec.structs.replace(ORIN, tensorrt_version=version)
    made = record(version_compatible=True)
    if fits:
        check_record(made, place, where="e")
    else:
        with pytest.raises(BundleError):
            check_record(made, place, where="e")


def test_a_tensorrt_that_does_not_tell_its_build_fits_by_its_first_three_numbers() -> None:
    """JetPack 6's says 10.3.0, and its plans 10.3.0.30."""
    check_record(record(), msgspec.structs.replace(ORIN, tensorrt_version=(10, 3, 0, 0)), where="e")
    with pytest.raises(BundleError, match=r"10\.3\.0\.30; here is 10\.3\.1\. Build"):
        check_record(record(), msgspec.structs.replace(ORIN, tensorrt_version=(10, 3, 1, 0)), where="e")


def test_ampere_plus_engines_run_on_later_gpus_and_no_earlier_ones() -> None:
    made = record(hardware_compatibility="ampere_plus")
    check_record(made, msgspec.structs.replace(ORIN, compute_capability="9.0"), where="e")
    with pytest.raises(BundleError):
        check_record(made, msgspec.structs.replace(ORIN, compute_capability="7.5"), where="e")


ORIN_SMI = parse_gpus("Orin (nvgpu), 540.4.0, [N/A], [N/A]\n")
SERVER_SMI = parse_gpus("NVIDIA H200, 570.86.15, 143771, 9.0\n")


@pytest.mark.parametrize(
    ("gpus", "model", "capability", "device"),
    [
        (ORIN_SMI, "NVIDIA Jetson AGX Orin Developer Kit", "8.7", "Orin (nvgpu)"),
        (ORIN_SMI, "NVIDIA Jetson AGX Thor Developer Kit", "11.0", "Orin (nvgpu)"),
        ([], "NVIDIA Jetson Orin Nano", "8.7", None),
        (SERVER_SMI, "NVIDIA Jetson AGX Orin", "9.0", "NVIDIA H200"),
        (SERVER_SMI, None, "9.0", "NVIDIA H200"),
        (ORIN_SMI, None, None, "Orin (nvgpu)"),
        ([], None, None, None),
    ],
)
def test_what_nvidia_smi_does_not_tell_the_boards_name_does(
    gpus: list[Gpu], model: str | None, capability: str | None, device: str | None
) -> None:
    """JetPack 6's lists the GPU and says [N/A] for its compute capability."""
    jetson = None if model is None else Jetson(model=model, l4t="36.4.0", jetpack="6.1 or 6.2")
    found = here(msgspec.structs.replace(read_machine(), gpus=gpus, jetson=jetson))
    assert (found.compute_capability, found.device) == (capability, device)


def test_an_engine_in_a_bundle_is_found(with_engine: Callable[..., tuple[Bundle, EngineRecord]]) -> None:
    bundle, made = with_engine()
    assert load_record(bundle, KEY) == made
    assert check_engine(bundle, KEY, "projector", made).read_bytes() == plan()


def test_a_replaced_plan_is_refused(with_engine: Callable[..., tuple[Bundle, EngineRecord]]) -> None:
    bundle, made = with_engine()
    path = bundle.root / f"engines/{KEY}/projector.engine"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="changed or damaged"):
        check_engine(bundle, KEY, "projector", made)


def test_a_plan_of_another_version_than_recorded_is_refused(
    with_engine: Callable[..., tuple[Bundle, EngineRecord]],
) -> None:
    bundle, made = with_engine(plan(version=(10, 16, 2, 10)))
    with pytest.raises(BundleError, match=r"a plan of tensorrt 10.16.2.10; .* says tensorrt 10.3.0.30"):
        check_engine(bundle, KEY, "projector", made)


@pytest.mark.parametrize("changed", ["onnx_sha256", "weights_sha256"])
def test_an_engine_of_another_graph_is_stale(
    with_engine: Callable[..., tuple[Bundle, EngineRecord]], changed: str
) -> None:
    bundle, made = with_engine(**{changed: "f" * 64})
    with pytest.raises(BundleError, match=r"were built from other graphs or weights than variant 'fp32'"):
        check_engine(bundle, KEY, "projector", made)


def test_missing_engines_are_named(with_engine: Callable[..., tuple[Bundle, EngineRecord]]) -> None:
    bundle, made = with_engine()
    with pytest.raises(InputError, match=r"there are: jetson-orin-jp6/fp32\. Make them: edgevqa build .* --target rtx"):
        load_record(bundle, "rtx/fp32")
    with pytest.raises(BundleError, match=r"no engine of 'vision_trunk'\. .*edgevqa build .* --precision fp32"):
        check_engine(bundle, KEY, "vision_trunk", made)


def test_what_targets_cannot_do_is_said_before() -> None:
    with pytest.raises(InputError, match=r"jetson-orin-jp6' cannot run fp8: Orin's GPU .* quantise to int8"):
        target("jetson-orin-jp6").numerics_of("fp8")
    assert target("jetson-thor-jp7").numerics_of("fp8") == ("fp8-fp16",)
    assert not target("jetson-orin-legacy").builds_engines


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_why_for_each_precision_it_lacks(name: str) -> None:
    row = target(name)
    lacking = {"fp32", "fp16", "bf16", "int8", "mixed", "fp8"} - set(row.numerics)
    assert lacking <= set(row.cannot), "each has a reason"
    assert row.opset <= row.max_opset


def test_damaged_engines_do_not_stop_the_rest_of_a_bundle(
    with_engine: Callable[..., tuple[Bundle, EngineRecord]],
) -> None:
    bundle, _ = with_engine()
    (bundle.root / f"engines/{KEY}/projector.engine").write_bytes(b"")
    found = Bundle.open(bundle.root)
    assert found.manifest.engines == {}
    with pytest.raises(
        BundleError, match=rf"engines '{KEY}'.* are damaged: .*edgevqa build .* --target jetson-orin-jp6"
    ):
        load_record(found, KEY)
    assert any(not report.passed for report in found.verify()), "verify still tells"
