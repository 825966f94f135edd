"""Power of NVIDIA GPUs, from `nvidia-smi` (NVML) running beside the measurement."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading

QUERY = ("--query-gpu=power.draw", "--format=csv,noheader,nounits")
INTERVAL_MS = 100
STARTING_S = 10.0  # nvidia-smi takes a second or two where the driver was asleep


class GpuPower:
    """The power of all GPUs of the machine, as `nvidia-smi` reports it ten times a second.

    Made when the first reading is there: what is measured next would count for nothing until then.
    """

    def __init__(self, program: str, gpus: int) -> None:
        self.label = "NVML GPU power"
        self._gpus = gpus
        self._rows: list[float] = []
        self._watts = 0.0
        self._told = threading.Event()
        self._process = subprocess.Popen(
            [program, *QUERY, f"--loop-ms={INTERVAL_MS}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True, name="gpu-power")
        self._reader.start()
        self._told.wait(STARTING_S)

    def watts(self) -> float:
        """The newest reading, 0 where there is none."""
        return self._watts

    def close(self) -> None:
        """End `nvidia-smi`."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        """One line a GPU, again and again."""
        for line in self._process.stdout or ():
            watts = parse_watts(line)
            if watts is not None:
                self._rows.append(watts)
            if len(self._rows) == self._gpus:
                self._watts, self._rows = sum(self._rows), []
                self._told.set()
        self._told.set()  # it ended


def parse_watts(line: str) -> float | None:
    """Watts from one line of `nvidia-smi`; None for `[N/A]`."""
    with contextlib.suppress(ValueError):
        return float(line.strip())
    return None


def open_gpu_power() -> GpuPower | None:
    """Start reading; None without `nvidia-smi`, or where its GPUs do not tell their power."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        told = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    readings = [watts for line in told.splitlines() if (watts := parse_watts(line)) is not None]
    return GpuPower(program, len(readings)) if readings else None
