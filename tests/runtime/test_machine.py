"""What the machine is, read from other machines' files, and what doctor makes of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from edgevqa.runtime import doctor
from edgevqa.runtime.doctor import EXTRAS, diagnose, find_backends, find_extra, install_command
from edgevqa.runtime.machine import (
    Gpu,
    Jetson,
    Machine,
    describe_machine,
    instruction_sets,
    jetpack_of,
    l4t_release,
    nvidia_driver,
    parse_gpus,
    read_machine,
)

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8 avx_vnni
processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu
"""
ORIN = """processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd evtstrm aes atomics fphp asimdhp cpuid asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42

processor\t: 1
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n# KERNEL_VARIANT: oot\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_server(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": XEON,
        "proc/meminfo": "MemTotal:       24684092 kB\nMemAvailable:   23843024 kB\n",
        "sys/fs/cgroup/memory.max": "8000000000\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
    }
    machine = read_machine(write(tmp_path, files))
    assert machine.cpu == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert machine.instruction_sets[-3:] == ["amx_tile", "amx_int8", "amx_bf16"]
    assert "avx512_vnni" in machine.instruction_sets
    assert (machine.memory_mb, machine.memory_free_mb, machine.memory_limit_mb) == (25277, 24415, 8000)
    assert machine.system.startswith("Ubuntu 24.04.1 LTS, ")
    assert machine.jetson is None


def test_a_jetson(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": ORIN,
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": RELEASE,
        "sys/fs/cgroup/memory.max": "max\n",
    }
    machine = read_machine(write(tmp_path, files))
    assert machine.cpu == "2 x Cortex-A78AE"
    assert machine.instruction_sets == ["neon", "asimdhp", "asimddp"]
    assert machine.jetson == Jetson(model="NVIDIA Jetson AGX Orin Developer Kit", l4t="36.4.3", jetpack="6.1 or 6.2")
    assert machine.memory_limit_mb is None


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.cpu
    assert (machine.instruction_sets, machine.memory_mb, machine.memory_limit_mb) == ([], None, None)
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert read_machine(tmp_path).memory_limit_mb is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("32.7.1", "4"),
        ("35.4.1", "5"),
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1 or 6.2"),
        ("36.5", "6.1 or 6.2"),
        ("38.2.0", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("28.1", None),
    ],
)
def test_jetpack_of_l4t(l4t: str, jetpack: str | None) -> None:
    assert jetpack_of(l4t) == jetpack


def test_l4t_of_other_texts() -> None:
    assert l4t_release("") is None
    assert l4t_release("# R35 (release), REVISION: 4.1, GCID: 1") == "35.4.1"


def test_gpus() -> None:
    table = "NVIDIA H200, 570.86.15, 143771, 9.0\nOrin (nvgpu), 540.4.0, [N/A], [N/A]\n\n"
    assert parse_gpus(table) == [
        Gpu(name="NVIDIA H200", driver="570.86.15", memory_mb=150755, compute_capability="9.0"),
        Gpu(name="Orin (nvgpu)", driver="540.4.0", memory_mb=None, compute_capability=None),
    ]


def test_this_machine_is_json() -> None:
    described = describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert described["cores"] >= described["usable_cores"] >= 1
    assert instruction_sets("") == []


def test_extras_are_those_of_the_package() -> None:
    """The table in doctor.py says what pyproject.toml says."""
    declared: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("edgevqa") or []:
        requirement = Requirement(line)
        match = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker))
        if match and match.group(1) != "dev":
            declared.setdefault(match.group(1), set()).add(requirement.name.lower())
    assert {name: set(packages) for name, packages in EXTRAS.items()} == declared


def fake_machine(gpus: list[Gpu], jetson: Jetson | None = None) -> Machine:
    return msgspec.structs.replace(read_machine(), gpus=gpus, jetson=jetson)


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    monkeypatch.setattr(doctor, "version_of", versions.get)


def advice(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> str:
    monkeypatch.setattr(doctor, "read_machine", lambda: machine)
    return "\n".join(diagnose().advice)


H200 = Gpu(name="NVIDIA H200", driver="570", memory_mb=150755, compute_capability="9.0")


def test_two_onnxruntimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    assert "onnxruntime and onnxruntime-gpu overwrite each other's files" in advice(monkeypatch, fake_machine([]))


def test_missing_extras_come_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.31.1"})
    assert find_extra("cpu").install is None
    assert find_extra("openvino").install == "pip install 'edgevqa[openvino]'"
    assert install_command("gpu") == "pip uninstall onnxruntime, then pip install 'edgevqa[gpu]'"
    rtx = find_extra("tensorrt-rtx")
    assert rtx.missing == ["cuda-python", "tensorrt-rtx"]


def test_a_gpu_without_a_backend_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"openvino": "2025.4"})
    found = advice(monkeypatch, fake_machine([H200]))
    assert "There is a GPU (NVIDIA H200), but no backend for it: " in found
    assert "pip install 'edgevqa[gpu]'" in found


def test_tensorrt_without_a_gpu_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"tensorrt-rtx": "1.7", "cuda-python": "13.0"})
    monkeypatch.setattr(doctor, "_onnxruntime", lambda extra: absent("ONNX Runtime"))
    monkeypatch.setattr(doctor, "_openvino", lambda: absent("OpenVINO"))
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: False)
    found = advice(monkeypatch, fake_machine([]))
    assert "No backend can be used, so no question can be answered: pip install 'edgevqa[cpu]'" in found
    assert find_backends(fake_machine([]))[3].devices == []
    assert find_backends(fake_machine([H200]))[3].devices == ["NVIDIA H200"]
    assert "No backend" not in advice(monkeypatch, fake_machine([H200]))


def absent(name: str) -> doctor.Backend:
    return doctor.Backend(name=name, extra="cpu", version=None, devices=[], problem=None, install="")


def test_a_jetson_is_not_told_of_packages_that_it_cannot_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no onnxruntime-gpu for it, and TensorRT is the system's."""
    installed(monkeypatch, {"openvino": "2025.4"})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("tensorrt", "onnxruntime") else find_spec(name)
    )
    board = fake_machine([], Jetson(model="Jetson AGX Orin", l4t="36.4.3", jetpack="6.1 or 6.2"))
    onnxruntime, _, tensorrt, _ = find_backends(board)
    assert onnxruntime.install == "pip install 'edgevqa[cpu]'"
    assert str(tensorrt.install).startswith("sudo apt install tensorrt python3-libnvinfer, then ")
    assert "--system-site-packages" in str(tensorrt.install)
    assert "pip install tensorrt" not in str(tensorrt.install)
    told = advice(monkeypatch, board)
    assert "There is a GPU (Jetson AGX Orin), but no backend for it: sudo apt install" in told
    assert "edgevqa[gpu]" not in told
    assert find_backends(fake_machine([]))[2].install == "pip install tensorrt, then pip install 'edgevqa[tensorrt]'"


def test_an_old_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Jetson(model="Jetson", l4t="35.4.1", jetpack="5")
    assert "upgrade to JetPack 6.1 or later" in advice(monkeypatch, fake_machine([], old))
    new = Jetson(model="Jetson", l4t="36.4.3", jetpack="6.1 or 6.2")
    assert "upgrade" not in advice(monkeypatch, fake_machine([], new))
    tensorrt = find_backends(fake_machine([], new))[2]
    assert tensorrt.name == "TensorRT"
    assert tensorrt.version is not None or "sudo apt install" in str(tensorrt.install)


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvhost-gpu"])
def test_a_driver_is_seen_by_what_it_leaves(tmp_path: Path, sign: str) -> None:
    assert not nvidia_driver(tmp_path)
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert nvidia_driver(tmp_path)
