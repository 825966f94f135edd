"""A process of the GPU benchmark: reads a task, measures, writes figures. What one backend breaks, it breaks alone.

python -m benchmarks.gpu_parts.worker TASK.json FIGURES.json
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import traceback
from itertools import islice
from pathlib import Path

import msgspec

from benchmarks.gpu_parts.figures import Task
from benchmarks.gpu_parts.processes import UNAVAILABLE
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.processes import end_with_parent

ASKED = "scenes:7"


def main() -> None:
    """Measure one task. Exit code 3: it cannot run here. The last line of what it prints says why it failed."""
    end_with_parent()
    task = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Task)
    try:
        _measure(task, Path(sys.argv[2]))
    except EdgeVQAError as error:
        print(" ".join(str(error).splitlines()), flush=True)
        raise SystemExit(UNAVAILABLE) from error
    except Exception as error:  # of PyTorch's and others' libraries; their own last lines are advice
        traceback.print_exc()
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), "it gave no reason")
        print(f"{type(error).__name__}: {told}", flush=True)
        raise SystemExit(1) from error


def _measure(task: Task, output: Path) -> None:
    samples = list(islice(open_dataset(f"{ASKED}:{task.samples}"), task.samples))
    if task.runner.startswith("torch"):
        from benchmarks.gpu_parts.eager import measure_torch as measure
    else:
        from benchmarks.gpu_parts.backends import measure_backend as measure
    figures = measure(task, samples, gpu_memory=gpu_memory_mb)
    draft = output.with_suffix(".part")
    draft.write_bytes(msgspec.json.encode(figures))
    draft.replace(output)  # a process may crash on its way out: the figures are whole, or not there


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
