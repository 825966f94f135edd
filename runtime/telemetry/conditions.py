"""How the machine runs now: clocks, temperatures, power mode and fan, from sysfs, `nvpmodel` and `nvidia-smi`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

CPUS = "sys/devices/system/cpu"
DEVFREQ = "sys/class/devfreq"
THERMAL = "sys/class/thermal"
HWMON = "sys/class/hwmon"
COMMAND_TIMEOUT_S = 10
_GPU_CLOCK = re.compile(r"gpu|gv11b|gp10b|gm20b|ga10b|gb10b", re.IGNORECASE)
_QUERY = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.limit,pstate,clocks_event_reasons.active"


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """A clock in MHz, now and as it is bounded. `fixed`: both bounds are one, as `jetson_clocks` makes them."""

    current_mhz: float
    lowest_mhz: float
    highest_mhz: float
    governor: str | None

    @property
    def fixed(self) -> bool:
        return self.lowest_mhz == self.highest_mhz


class GpuCondition(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as `nvidia-smi` tells; None where it does not say. `slowed_by` are the bits of what holds clocks down."""

    sm_mhz: float | None
    memory_mhz: float | None
    highest_sm_mhz: float | None
    temperature_c: float | None
    power_limit_w: float | None
    state: str | None
    slowed_by: str | None


class PowerMode(msgspec.Struct, frozen=True, kw_only=True):
    """A Jetson's power mode, as `nvpmodel -q` tells."""

    name: str
    number: int | None


class Fan(msgspec.Struct, frozen=True, kw_only=True):
    """A fan: its drive, 0 to 1, and its speed; None where the driver does not tell."""

    name: str
    drive: float | None
    rpm: int | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What may make two measurements on one machine differ. What cannot be read is None or left out.

    `cpu` are the clocks of the processors, alike ones told once with their number; `gpu` are a Jetson's GPU clocks.
    `clocks_fixed` is whether all these are, which on a Jetson is what `jetson_clocks` does.
    """

    cpu: dict[str, Clock]
    gpu: dict[str, Clock]
    gpus: list[GpuCondition]
    clocks_fixed: bool | None
    temperatures_c: dict[str, float]
    power_mode: PowerMode | None
    fans: list[Fan]


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Read them all. `root` is where `sys` is found; the two commands are looked for on the path."""
    cpu, gpu = _cpu_clocks(root), _gpu_clocks(root)
    clocks = [*cpu.values(), *gpu.values()]
    return Conditions(
        cpu=cpu,
        gpu=gpu,
        gpus=parse_gpus(_told("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")),
        clocks_fixed=all(clock.fixed for clock in clocks) if clocks else None,
        temperatures_c=_temperatures(root),
        power_mode=parse_power_mode(_told("nvpmodel", "-q")),
        fans=_fans(root),
    )


def parse_power_mode(told: str) -> PowerMode | None:
    """The mode from `nvpmodel -q`: a line `NV Power Mode: MAXN`, and its number on the next; None without that line."""
    match = re.search(r"^NV Power Mode: *(\S.*?)\s*$(?:\s*^(\d+)\s*$)?", told, re.MULTILINE)
    if match is None:
        return None
    return PowerMode(name=match.group(1), number=None if match.group(2) is None else int(match.group(2)))


def parse_gpus(table: str) -> list[GpuCondition]:
    """GPUs from `nvidia-smi`, a line each."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    return [
        GpuCondition(
            sm_mhz=_number(row[0]),
            memory_mhz=_number(row[1]),
            highest_sm_mhz=_number(row[2]),
            temperature_c=_number(row[3]),
            power_limit_w=_number(row[4]),
            state=_known(row[5]),
            slowed_by=_known(row[6]),
        )
        for row in rows
        if len(row) == _QUERY.count(",") + 1
    ]


def _cpu_clocks(root: Path) -> dict[str, Clock]:
    """`4 x cpu0` for the processors whose clock now, bounds and governor are those of the first."""
    folders = sorted((root / CPUS).glob("cpu[0-9]*/cpufreq"), key=lambda folder: int(folder.parent.name[3:]))
    alike: dict[Clock, list[str]] = {}
    for folder in folders:
        names = (f"scaling_{name}" for name in ("cur_freq", "min_freq", "max_freq", "governor"))
        clock = _clock([folder / name for name in names], per_mhz=1e3)
        if clock is not None:
            alike.setdefault(clock, []).append(folder.parent.name)
    return {f"{len(names)} x {names[0]}": clock for clock, names in alike.items()}


def _gpu_clocks(root: Path) -> dict[str, Clock]:
    found: dict[str, Clock] = {}
    for folder in sorted((root / DEVFREQ).glob("*")):
        names = ("cur_freq", "min_freq", "max_freq", "governor")
        clock = _clock([folder / name for name in names], per_mhz=1e6) if _GPU_CLOCK.search(folder.name) else None
        if clock is not None:
            found[folder.name] = clock
    return found


def _clock(files: list[Path], *, per_mhz: float) -> Clock | None:
    """A clock from the files with its frequency, its bounds and its governor."""
    current, lowest, highest = (_number(_text(file)) for file in files[:3])
    if current is None or lowest is None or highest is None:
        return None
    return Clock(
        current_mhz=current / per_mhz,
        lowest_mhz=lowest / per_mhz,
        highest_mhz=highest / per_mhz,
        governor=_text(files[3]) or None,
    )


def _temperatures(root: Path) -> dict[str, float]:
    """Degrees by sensor; zones that are switched off cannot be read and are left out."""
    found: dict[str, float] = {}
    for zone in sorted((root / THERMAL).glob("thermal_zone*"), key=lambda zone: int(zone.name[12:])):
        millidegrees, name = _number(_text(zone / "temp")), _text(zone / "type")
        if millidegrees is not None and name:
            found[name if name not in found else f"{name} ({zone.name})"] = millidegrees / 1e3
    return found


def _fans(root: Path) -> list[Fan]:
    """Fans by their drivers: on a Jetson one drives (`pwmfan`) and another counts turns (`pwm_tach`)."""
    found: list[Fan] = []
    for folder in sorted((root / HWMON).glob("hwmon*")):
        drive = _number(_text(folder / "pwm1"))
        turns = [speed for name in ("rpm", "fan1_input") if (speed := _number(_text(folder / name))) is not None]
        rpm = turns[0] if turns else None
        if drive is not None or rpm is not None:
            name = _text(folder / "name") or folder.name
            found.append(
                Fan(
                    name=name,
                    drive=None if drive is None else round(drive / 255, 3),
                    rpm=None if rpm is None else int(rpm),
                )
            )
    return found


def _told(name: str, *arguments: str) -> str:
    """What a command prints, "" where it is not there or fails."""
    program = shutil.which(name)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _known(cell: str) -> str | None:
    return None if not cell or cell.startswith("[") else cell


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
