"""What is OpenVINO's own: no call home, exact arithmetic, devices, properties, and the cache of compiled graphs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.doctor import diagnose, find_backends
from edgevqa.runtime.errors import BundleError, ConfigError, UnavailableError
from edgevqa.runtime.machine import read_machine
from edgevqa.runtime.sessions import BACKENDS, compiled_cache, open_session, ov
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.ov import OvSession, OvTensor, compile_settings, message_of

pytestmark = pytest.mark.skipif(not BACKENDS["openvino"].installed(), reason="openvino is not installed")

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled graphs."""
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def load(path: Path, **provider_options: str) -> OvSession:
    options = SessionOptions(threads=1, provider_options=provider_options)
    session = open_session(Bundle.open(path), "fp32", "vision_trunk", backend="openvino", options=options)
    assert isinstance(session, OvSession)
    return session


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.blob"))


def was_cached(session: OvSession) -> bool:
    return bool(session.compiled.get_property("LOADED_FROM_CACHE"))


def answer(session: OvSession) -> np.ndarray:
    return session.run(TRUNK)["trunk_states"].numpy()


def test_importing_it_reports_nothing(tmp_path: Path) -> None:
    """The package says on import, over the network, that it was imported; it does so through `openvino_telemetry`."""
    code = (
        "import sys\n"
        "from edgevqa.runtime.sessions.ov import core, load_openvino\n"
        "load_openvino(); core()\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__, 'openvino_telemetry' in sys.modules)\n"
        "import openvino_telemetry\n"  # others in the process may still use it
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert list(tmp_path.iterdir()) == []


def test_nobody_imports_it_plainly() -> None:
    """Whoever needs it calls `load_openvino`, in a test the fixture `openvino`."""
    root = Path(__file__).parents[3]
    plain = re.compile(r"^\s*(import|from) openvino\b|(importorskip|import_module)\(.openvino", re.MULTILINE)
    rooms = ("calibration", "evaluation", "export", "models", "runtime", "edgevqa/cli", "tests", "benchmarks")
    files = [file for room in rooms for file in (root / room).rglob("*.py") if file != Path(__file__)]
    assert len(files) > 100
    assert [str(file) for file in files if plain.search(file.read_text(encoding="utf-8"))] == []


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(ov, "require", broken)
    with pytest.raises(UnavailableError, match=r"cannot be loaded: libtbb\.so\.12"):
        ov.load_openvino.__wrapped__()
    assert sys.modules.get("openvino_telemetry", "untouched") is not None


def test_it_computes_in_float32_on_the_threads_asked_for(toy_bundle: Path) -> None:
    with load(toy_bundle) as session:
        settings = {
            name: str(session.compiled.get_property(name))
            for name in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
        }
    assert "32" in settings.pop("INFERENCE_PRECISION_HINT")
    assert settings == {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "False"}


def test_outputs_are_its_own_tensors_and_requests_are_reused(toy_bundle: Path) -> None:
    with load(toy_bundle) as session:
        tensors = [session.run(TRUNK)["trunk_states"] for _ in range(5)]
        assert all(isinstance(tensor, OvTensor) for tensor in tensors)
        assert len(session._idle) == 1
        addresses = {tensor.value.data.ctypes.data for tensor in tensors if isinstance(tensor, OvTensor)}
        assert len(addresses) == 5


def test_a_device_that_is_not_here(toy_bundle: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no device 'TPU' on this machine; it has CPU"):
        load(toy_bundle, DEVICE="TPU")


def test_properties_go_to_openvino_and_unknown_ones_are_named(toy_bundle: Path) -> None:
    with load(toy_bundle, DEVICE="CPU", ENABLE_CPU_PINNING="YES") as session:
        assert session.compiled.get_property("ENABLE_CPU_PINNING") is True
    with pytest.raises(ConfigError, match=r"has no property NUM_TREADS; expected .*INFERENCE_NUM_THREADS"):
        compile_settings(SessionOptions(provider_options={"NUM_TREADS": "2"}))


def test_messages_lose_the_places_in_the_source() -> None:
    error = RuntimeError(
        "Exception from src/inference/src/cpp/core.cpp:132:\nCheck 'x' failed at a.cpp:1:\n\nNo such graph.\n Really.\n"
    )
    assert message_of(error) == "No such graph. Really."
    assert message_of(RuntimeError("Exception from a.cpp:1:")) == "Exception from a.cpp:1:"


def test_the_second_load_comes_from_the_cache_and_answers_the_same(toy_bundle: Path, cache: Path) -> None:
    with load(toy_bundle) as session:
        assert not was_cached(session)
        expected = answer(session)
    assert len(blobs(cache)) == 1
    with load(toy_bundle) as session:
        assert was_cached(session)
        np.testing.assert_array_equal(answer(session), expected)
    assert len(blobs(cache)) == 1


@pytest.mark.parametrize("change", ["flip a bit", "cut it", "unknown file"])
def test_a_changed_cache_is_not_loaded(toy_bundle: Path, cache: Path, change: str) -> None:
    with load(toy_bundle) as session:
        expected = answer(session)
    (blob,) = blobs(cache)
    data = bytearray(blob.read_bytes())
    blob.unlink()
    if change == "unknown file":
        (blob.parent / "sums.json").unlink()
    if change == "flip a bit":
        data[len(data) // 2] ^= 1
    blob.write_bytes(data[: len(data) // 2] if change == "cut it" else data)
    with load(toy_bundle) as session:
        assert not was_cached(session)
        np.testing.assert_array_equal(answer(session), expected)


def test_other_weights_have_another_cache(toy_bundle: Path, make_toy: Any, cache: Path) -> None:
    """OpenVINO itself looks at the graph's file alone, not at the weights beside it."""
    with load(toy_bundle):
        pass
    with load(make_toy(capacity=9)) as session:  # another decoder, so another fingerprint
        assert not was_cached(session)
    assert len({blob.parents[1] for blob in blobs(cache)}) == 2


def test_another_version_has_another_cache(toy_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(toy_bundle):
        pass
    monkeypatch.setattr(ov, "version", lambda: "2031.1")
    with load(toy_bundle) as session:
        assert not was_cached(session)
    assert len(blobs(cache)) == 2


def test_without_a_place_for_the_cache_it_works(toy_bundle: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    with load(toy_bundle) as session:
        assert not was_cached(session)
        assert answer(session).shape == (2, 4, 6)


def test_a_nearly_full_disk_is_left_alone(toy_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "SPARE_BYTES", 1 << 62)
    with load(toy_bundle) as session:
        assert answer(session).shape == (2, 4, 6)
    assert blobs(cache) == []


def test_a_cache_that_cannot_be_written_to_is_done_without(
    toy_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder passes the checks, and OpenVINO fails in it all the same: as on a disk that fills up."""
    monkeypatch.setattr(compiled_cache.CompiledCache, "_prepare", lambda self: True)
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with load(toy_bundle) as session:
        assert answer(session).shape == (2, 4, 6)


def test_the_folders_used_longest_ago_go_first(toy_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, used = cache / "key" / "old", cache / "key" / "used"
    for age, folder in ((200, old), (100, used)):
        folder.mkdir(parents=True)
        (folder / "1.blob").write_bytes(bytes(1000))
        (folder / "sums.json").write_text("{}")
        stamp = (folder / "sums.json").stat().st_mtime - age
        os.utime(folder / "sums.json", (stamp, stamp))
    with load(toy_bundle):
        pass
    assert old.is_dir()
    size = sum(file.stat().st_size for file in blobs(cache)[0].parent.iterdir())
    monkeypatch.setattr(compiled_cache, "LIMIT_BYTES", 3 * size)
    (old / "1.blob").write_bytes(bytes(3 * size))
    with open_session(Bundle.open(toy_bundle), "fp32", "projector", backend="openvino"):
        pass
    assert not old.exists()
    assert used.exists()


def test_a_cache_of_the_users_own_is_used_as_it_is(toy_bundle: Path, cache: Path, tmp_path: Path) -> None:
    with load(toy_bundle, CACHE_DIR=str(tmp_path / "mine")):
        pass
    assert blobs(tmp_path / "mine")
    assert blobs(cache) == []


def test_an_operator_it_lacks_is_named(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from edgevqa.runtime.manifest import FileSpec, GraphSpec

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Teleport", ["x"], ["y"], domain="far")], "g", values[:1], values[1:])
    domains = [helper.make_opsetid("", 19), helper.make_opsetid("far", 1)]
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    spec = GraphSpec(
        file=FileSpec(path="odd.onnx", sha256="", size_bytes=0),
        opset=19,
        ir_version=10,
        inputs=[],
        outputs=[],
        parameters=0,
        nodes={},
    )
    with pytest.raises(BundleError, match=r"OpenVINO 2\S* cannot load .*odd\.onnx for the device CPU: .*Teleport"):
        OvSession(path, "odd", spec, SessionOptions())


def test_the_doctor_names_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {row.name: row for row in find_backends(read_machine())}["OpenVINO"]
    assert found.devices
    assert found.devices[0].startswith("CPU (")
    assert found.problem is None

    def broken() -> list[str]:
        raise UnavailableError("libtbb is gone.")

    monkeypatch.setattr(ov, "devices", broken)
    found = {row.name: row for row in find_backends(read_machine())}["OpenVINO"]
    assert found.problem == "it cannot be used: libtbb is gone."


def test_the_doctor_says_what_auto_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--backend auto is onnxruntime, because EDGEVQA_BACKEND says so." in diagnose().advice
    monkeypatch.delenv("EDGEVQA_BACKEND")
    measures = [line for line in diagnose().advice if line.startswith("--backend auto measures ")]
    assert len(measures) == 1
    assert all(name in measures[0] for name in ("onnxruntime", "openvino"))
