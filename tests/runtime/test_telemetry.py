"""Sensors read from recorded trees of sysfs files, and the peak memory of a real process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.telemetry.conditions import parse_power_mode, read_conditions
from edgevqa.runtime.telemetry.energy import EnergyMeter, SampledPower
from edgevqa.runtime.telemetry.ina3221 import board_rails, find_rails
from edgevqa.runtime.telemetry.memory import peak_memory_mb
from edgevqa.runtime.telemetry.nvidia import parse_watts
from edgevqa.runtime.telemetry.rapl import open_zones


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def zone(folder: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> dict[str, str]:
    place = f"sys/class/powercap/{folder}"
    return {
        f"{place}/name": f"{name}\n",
        f"{place}/energy_uj": f"{energy_uj}\n",
        f"{place}/max_energy_range_uj": f"{range_uj}\n",
    }


@pytest.fixture
def xeon(tmp_path: Path) -> Path:
    """A server with one package, its cores and its memory, the whole platform, and the package seen a second time."""
    for files in (
        zone("intel-rapl:0", "package-0", 1_000_000, range_uj=9_999_999),
        zone("intel-rapl:0:0", "core", 500),
        zone("intel-rapl:0:1", "dram", 3_000_000),
        zone("intel-rapl:1", "psys", 7),
        zone("intel-rapl-mmio:0", "package-0", 1_000_000),
    ):
        write(tmp_path, files)
    return tmp_path


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """A Jetson whose first sensor has the input, a rail, a channel that is not connected, and the sum."""
    place = "sys/bus/i2c/devices/1-0040"
    rails = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("NC", 5000, 99), 7: ("sum", 1, 1)}
    files = {f"{place}/name": "ina3221\n", "sys/bus/i2c/devices/0-0050/name": "24c02\n"}
    for number, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"{place}/hwmon/hwmon1/in{number}_label": f"{label}\n",
            f"{place}/hwmon/hwmon1/in{number}_input": f"{millivolts}\n",
            f"{place}/hwmon/hwmon1/curr{number}_input": f"{milliamperes}\n",
        }
    write(tmp_path, files)
    return tmp_path


def test_rapl_counts_packages_and_their_memory_once(xeon: Path) -> None:
    with EnergyMeter.open(xeon) as meter:
        assert meter.sensors == ["RAPL package-0", "RAPL dram"]
        assert meter.joules() == 0
        write(xeon, zone("intel-rapl:0", "package-0", 3_500_000, range_uj=9_999_999))
        write(xeon, zone("intel-rapl:0:1", "dram", 3_250_000))
        assert meter.joules() == pytest.approx(2.75)


def test_rapl_counts_on_when_the_counter_starts_again(xeon: Path) -> None:
    package = open_zones(xeon)[0]
    write(xeon, zone("intel-rapl:0", "package-0", 9_000_000, range_uj=9_999_999))
    assert package.joules() == pytest.approx(8.0)
    write(xeon, zone("intel-rapl:0", "package-0", 500_000, range_uj=9_999_999))
    assert package.joules() == pytest.approx(9.5)


def test_counters_that_may_not_be_read_are_told_from_none(xeon: Path) -> None:
    for counter in (xeon / "sys/class/powercap").glob("*/energy_uj"):
        counter.unlink()
        counter.mkdir()  # reading it fails, for root too
    with EnergyMeter.open(xeon) as meter:
        assert meter.joules() is None
        assert meter.missing is not None
        assert "root" in meter.missing


def test_a_machine_without_sensors_gives_none(tmp_path: Path) -> None:
    with EnergyMeter.open(tmp_path) as meter:
        assert meter.joules() is None
        assert meter.sensors == []
        assert meter.missing is not None
        assert "no energy sensor" in meter.missing


def test_a_jetsons_input_is_all_that_is_counted(orin: Path) -> None:
    assert [rail.label for rail in find_rails(orin)] == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert [rail.watts() for rail in board_rails(orin)] == [6.0]
    with EnergyMeter.open(orin, gpu=True) as meter:
        assert meter.sensors == ["INA3221 VDD_IN"]


def test_without_an_input_rail_the_others_are_added_up(orin: Path) -> None:
    label = orin / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_label"
    label.write_text("GPU\n")
    assert sum(rail.watts() for rail in board_rails(orin)) == pytest.approx(8.0)
    label.write_text("POM_5V_IN\n")
    assert [rail.label for rail in board_rails(orin)] == ["POM_5V_IN"]


def test_sampled_power_adds_up_over_time() -> None:
    power = [10.0]
    sensor = SampledPower("test", lambda: power[0], interval_s=0.01)
    start = time.perf_counter()
    time.sleep(0.2)
    first = sensor.joules()
    assert first == pytest.approx(10 * (time.perf_counter() - start), rel=0.1)
    power[0] = 0.0
    sensor.joules()
    low = sensor.joules()
    time.sleep(0.1)
    assert sensor.joules() == pytest.approx(low, abs=0.5)
    sensor.close()


def test_a_sensor_that_fails_once_does_not_end_the_measurement() -> None:
    busy = iter([False, True])

    def watts() -> float:
        if next(busy, False):
            raise OSError("busy")
        return 4.0

    sensor = SampledPower("test", watts, interval_s=60)
    time.sleep(0.05)
    assert sensor.joules() > 0.15
    sensor.close()


def test_gpu_power_is_read_beside_the_processors(xeon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a script in the place of `nvidia-smi` that prints two GPUs, in watts, as the real one does."""
    program = xeon / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho 30.50\necho 20.00\n"
        'case "$*" in *loop*) while :; do sleep 0.02; echo 30.50; echo 20.00; done;; esac\n'
    )
    slow_start = program.read_text().replace("#!/bin/sh", '#!/bin/sh\ncase "$*" in *loop*) sleep 0.5;; esac')
    program.write_text(slow_start)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with EnergyMeter.open(xeon, gpu=True) as meter:
        assert meter.sensors[-1] == "NVML GPU power"
        before, start = meter.joules(), time.perf_counter()
        time.sleep(0.3)
        after, seconds = meter.joules(), time.perf_counter() - start
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(50.5 * seconds, rel=0.1)
    with EnergyMeter.open(xeon) as meter:
        assert "NVML GPU power" not in meter.sensors


@pytest.mark.parametrize(("line", "watts"), [("71.23\n", 71.23), ("[N/A]\n", None), ("", None)])
def test_what_nvidia_smi_prints(line: str, watts: float | None) -> None:
    assert parse_watts(line) == watts


def test_peak_memory_stays_when_memory_is_freed() -> None:
    script = (
        "from edgevqa.runtime.telemetry.memory import peak_memory_mb\n"
        "before = peak_memory_mb(); block = bytearray(b'1' * 150_000_000); del block\n"
        "print(before, peak_memory_mb())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = (float(value) for value in told.split())
    assert after - before > 140


def test_peak_memory_from_a_recorded_status(tmp_path: Path) -> None:
    assert peak_memory_mb(tmp_path) is None
    write(tmp_path, {"proc/self/status": "Name:\tpython\nVmPeak:\t  900000 kB\nVmHWM:\t  100000 kB\n"})
    assert peak_memory_mb(tmp_path) == pytest.approx(102.4)


def programs(root: Path, monkeypatch: pytest.MonkeyPatch, **told: str) -> None:
    """Scripts in the place of commands, which print what the real ones printed."""
    (root / "bin").mkdir(exist_ok=True)
    for name, text in told.items():
        script = root / "bin" / name.replace("_", "-")
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")


@pytest.fixture
def running_orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Orin Nano after `jetson_clocks`, with a zone that is switched off and a fan in two parts."""
    for number in range(6):
        place = f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_"
        write(
            tmp_path,
            {
                f"{place}cur_freq": "1728000\n",
                f"{place}min_freq": "1728000\n",
                f"{place}max_freq": "1728000\n",
                f"{place}governor": "schedutil\n",
            },
        )
    devices = {"17000000.gpu": 1_020_000_000, "15340000.vic": 435_200_000}
    for name, hertz in devices.items():
        place = f"sys/class/devfreq/{name}"
        write(tmp_path, {f"{place}/{file}": f"{hertz}\n" for file in ("cur_freq", "min_freq", "max_freq")})
        write(tmp_path, {f"{place}/governor": "nvhost_podgov\n"})
    zones = (("cpu-thermal", "48312"), ("gpu-thermal", "47906"), ("cv0-thermal", None))
    for number, (name, millidegrees) in enumerate(zones):
        place = f"sys/class/thermal/thermal_zone{number}"
        write(tmp_path, {f"{place}/type": f"{name}\n"} | ({f"{place}/temp": millidegrees} if millidegrees else {}))
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "pwmfan\n", "sys/class/hwmon/hwmon0/pwm1": "51\n"})
    write(tmp_path, {"sys/class/hwmon/hwmon1/name": "pwm_tach\n", "sys/class/hwmon/hwmon1/rpm": "0\n"})
    write(tmp_path, {"sys/class/hwmon/hwmon2/name": "ina3221\n"})
    programs(tmp_path, monkeypatch, nvpmodel="NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n")
    return tmp_path


def test_the_conditions_of_a_jetson(running_orin: Path) -> None:
    found = read_conditions(running_orin)
    assert list(found.cpu) == ["6 x cpu0"]
    assert found.cpu["6 x cpu0"].current_mhz == 1728
    assert {name: clock.highest_mhz for name, clock in found.gpu.items()} == {"17000000.gpu": 1020}
    assert found.clocks_fixed is True
    assert found.temperatures_c == {"cpu-thermal": 48.312, "gpu-thermal": 47.906}
    assert found.power_mode is not None
    assert (found.power_mode.name, found.power_mode.number) == ("MAXN_SUPER", 2)
    assert [(fan.name, fan.drive, fan.rpm) for fan in found.fans] == [("pwmfan", 0.2, None), ("pwm_tach", None, 0)]


def test_clocks_that_may_change_are_not_fixed(running_orin: Path) -> None:
    write(running_orin, {"sys/class/devfreq/17000000.gpu/min_freq": "306000000\n"})
    assert read_conditions(running_orin).clocks_fixed is False
    write(running_orin, {"sys/devices/system/cpu/cpu5/cpufreq/scaling_cur_freq": "729600\n"})
    assert list(read_conditions(running_orin).cpu) == ["5 x cpu0", "1 x cpu5"]


def test_the_conditions_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "1980, 3201, 1980, 41, 700.00, P0, 0x0000000000000004\n345, [N/A], 1980, 28, [N/A], P8, [N/A]\n"
    programs(tmp_path, monkeypatch, nvidia_smi=told)
    first, second = read_conditions(tmp_path).gpus
    assert (first.sm_mhz, first.temperature_c, first.power_limit_w, first.state) == (1980, 41, 700, "P0")
    assert first.slowed_by == "0x0000000000000004"
    assert (second.memory_mhz, second.power_limit_w, second.slowed_by) == (None, None, None)


def test_nothing_to_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_conditions(tmp_path)
    assert (found.cpu, found.gpu, found.gpus, found.fans, found.temperatures_c) == ({}, {}, [], [], {})
    assert found.clocks_fixed is None
    assert found.power_mode is None


def test_power_modes_as_nvpmodel_prints_them() -> None:
    assert parse_power_mode("") is None
    named = parse_power_mode("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n")
    assert named is not None
    assert (named.name, named.number) == ("MODE_15W_6CORE", 2)
    bare = parse_power_mode("NV Power Mode: 15W\n")
    assert bare is not None
    assert (bare.name, bare.number) == ("15W", None)


def test_conditions_are_kept_beside_every_measurement() -> None:
    assert set(describe_machine()["telemetry"]) >= {"cpu", "gpus", "clocks_fixed", "temperatures_c", "power_mode"}
