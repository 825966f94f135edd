"""The process in which a tool quantises graphs: what a tool does to its process ends with it.

Run by `peer_graphs.py` as `python -m benchmarks.quantization.worker TASK.json...`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import msgspec

from benchmarks.quantization.task import Task, load_feeds


def main() -> None:
    """Do the tasks in order; one that fails leaves the reason in its file of errors."""
    for path in sys.argv[1:]:
        task = msgspec.json.decode(Path(path).read_bytes(), type=Task)
        try:
            module = importlib.import_module(task.module)
            module.quantize(task, load_feeds(Path(task.feeds)), **task.options)
        except Exception as error:  # noqa: BLE001 (whatever a tool raises is what it did)
            lines = str(error).strip().splitlines() or [""]
            Path(task.errors).write_text(f"{type(error).__name__}: {lines[-1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
