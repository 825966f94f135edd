"""What this machine is: Python, system, processor, memory, GPUs, Jetson. For `doctor` and beside every measurement."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.telemetry.conditions import read_conditions

COMMAND_TIMEOUT_S = 10

INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""The flags that matter for inference, as Linux names them; the reports call `asimd` by its usual name, `neon`."""

ARM_CORES = {
    "0x41:0xd05": "Cortex-A55",
    "0x41:0xd07": "Cortex-A57",
    "0x41:0xd08": "Cortex-A72",
    "0x41:0xd0b": "Cortex-A76",
    "0x41:0xd0c": "Neoverse N1",
    "0x41:0xd40": "Neoverse V1",
    "0x41:0xd42": "Cortex-A78AE",
    "0x41:0xd49": "Neoverse N2",
    "0x41:0xd4f": "Neoverse V2",
    "0x41:0xd83": "Neoverse V3AE",
    "0x4e:0x004": "Carmel",
}
"""Implementer and part of the cores in boards and servers that run this, from Arm's and NVIDIA's main ID registers."""

JETPACK_BY_L4T = (
    ((39, 2), "7.2"),
    ((38, 4), "7.1"),
    ((38, 2), "7.0"),
    ((36, 4), "6.1 or 6.2"),
    ((36, 3), "6.0"),
    ((35, 1), "5"),
    ((32, 1), "4"),
)
"""The first L4T release (major, minor) of each JetPack, newest first."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU as `nvidia-smi` tells; None where it does not say."""

    name: str
    driver: str | None
    memory_mb: int | None
    compute_capability: str | None


class Jetson(msgspec.Struct, frozen=True, kw_only=True):
    """A Jetson board: the model from its device tree, the L4T release, and the JetPack that it belongs to."""

    model: str
    l4t: str | None
    jetpack: str | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine. Sizes in MB of 10^6 bytes; `memory_limit_mb` is what a container may use, None without a limit."""

    python: str
    system: str
    architecture: str
    cpu: str
    instruction_sets: list[str]
    cores: int
    usable_cores: int
    memory_mb: int | None
    memory_free_mb: int | None
    memory_limit_mb: int | None
    gpus: list[Gpu]
    jetson: Jetson | None


def describe_machine() -> dict[str, Any]:
    """`read_machine()` as plain JSON values, to be kept beside a measurement; `telemetry` is how it runs now."""
    return {**msgspec.to_builtins(read_machine()), "telemetry": msgspec.to_builtins(read_conditions())}


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine. `root` is where `proc`, `sys` and `etc` are found; what is not there is left out."""
    cpu_text = _read(root / "proc/cpuinfo")
    memory_text = _read(root / "proc/meminfo")
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=_system(root),
        architecture=platform.machine(),
        cpu=cpu_model(cpu_text) or platform.processor() or platform.machine(),
        instruction_sets=instruction_sets(cpu_text),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_mb=_meminfo_mb(memory_text, "MemTotal"),
        memory_free_mb=_meminfo_mb(memory_text, "MemAvailable"),
        memory_limit_mb=_memory_limit_mb(root),
        gpus=_gpus(),
        jetson=read_jetson(root),
    )


def cpu_model(cpuinfo: str) -> str | None:
    """The processor's name from `/proc/cpuinfo`; on Arm, the kinds of its cores."""
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if names and "CPU implementer" not in cpuinfo:
        return str(names[0]).strip()
    implementers = re.findall(r"^CPU implementer\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    kinds = [f"{implementer}:{part}" for implementer, part in zip(implementers, parts, strict=False)]
    counted = {kind: kinds.count(kind) for kind in kinds}
    return " + ".join(f"{count} x {ARM_CORES.get(kind, kind)}" for kind, count in counted.items()) or None


def instruction_sets(cpuinfo: str) -> list[str]:
    """Those of `INSTRUCTION_SETS` that the first processor of `/proc/cpuinfo` has."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(match.group(1).split()) if match else set[str]()
    return ["neon" if name == "asimd" else name for name in INSTRUCTION_SETS if name in flags]


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """The Jetson board that this is, or None."""
    model = _read(root / "proc/device-tree/model").strip("\0 \n")
    l4t = l4t_release(_read(root / "etc/nv_tegra_release"))
    if l4t is None and not re.search(r"jetson|tegra", model, re.IGNORECASE):
        return None
    return Jetson(model=model or "unknown", l4t=l4t, jetpack=None if l4t is None else jetpack_of(l4t))


def l4t_release(text: str) -> str | None:
    """`36.4.0` from the first line of `/etc/nv_tegra_release`: `# R36 (release), REVISION: 4.0, ...`."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack_of(l4t: str) -> str | None:
    """The JetPack of an L4T release, None where it is older than all we know."""
    numbers = [int(number) for number in l4t.split(".")]
    release = (numbers[0], numbers[1] if len(numbers) > 1 else 0)
    return next((jetpack for first, jetpack in JETPACK_BY_L4T if release >= first), None)


def parse_gpus(table: str) -> list[Gpu]:
    """GPUs from `nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader,nounits`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    return [
        Gpu(
            name=name,
            driver=_known(driver),
            memory_mb=round(int(memory) * 1.048576) if memory.isdecimal() else None,  # nvidia-smi counts in MiB
            compute_capability=_known(capability),
        )
        for name, driver, memory, capability in (row for row in rows if len(row) == 4)
    ]


def _known(cell: str) -> str | None:
    return None if cell.startswith("[") or not cell else cell


def _gpus() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(done.stdout)


def _system(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', _read(root / "etc/os-release"), re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{match.group(1)}, {kernel}" if match else kernel


def _meminfo_mb(meminfo: str, key: str) -> int | None:
    match = re.search(rf"^{key}:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return round(int(match.group(1)) * 1.024 / 1000) if match else None


def _memory_limit_mb(root: Path) -> int | None:
    """The control group's limit, version 2 or 1."""
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(root / name).strip()
        if text.isdecimal() and int(text) < 1 << 60:  # version 1 writes a huge number for "no limit"
            return round(int(text) / 1e6)
    return None


def nvidia_driver(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA driver shows: on servers, on Jetson boards, and in Windows' Linux. Nothing is loaded."""
    signs = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvhost-ctrl", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg")
    return any((root / sign).exists() for sign in signs)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
