"""A process of the GPU benchmark: reads a task, measures, writes figures. What one backend breaks, it breaks alone.

python -m benchmarks.gpu_parts.worker TASK.json FIGURES.json
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import msgspec

from benchmarks.gpu_parts.figures import Task
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import EdgeVQAError

ASKED = "scenes:7"
UNAVAILABLE = 3


def main() -> None:
    """Measure one task. Exit code 3: it cannot run here, and the last line says why."""
    task = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Task)
    samples = list(islice(open_dataset(f"{ASKED}:{task.samples}"), task.samples))
    try:
        if task.runner.startswith("torch"):
            from benchmarks.gpu_parts.eager import measure_torch as measure
        else:
            from benchmarks.gpu_parts.backends import measure_backend as measure
        figures = measure(task, samples, gpu_memory=gpu_memory_mb)
    except EdgeVQAError as error:
        print(error)
        sys.exit(UNAVAILABLE)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(figures))


def gpu_memory_mb() -> float | None:
    """What the first GPU has in use, of all processes; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return float(told) * 1.048576 if told.isdecimal() else None


if __name__ == "__main__":
    main()
