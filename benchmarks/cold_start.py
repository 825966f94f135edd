"""Cold start of the runtime: the whole process of `edgevqa ask`, its peak memory, and `import edgevqa.runtime`.

    python -m benchmarks.cold_start BUNDLE [--python venv/bin/python]

`--python` names the interpreter of an environment with the base install and a backend alone, as on a board.
Writes benchmarks/results/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.process import Measured, measure
from edgevqa.export.samples import PICTURES
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "cold_start.json"
COMMAND = "from edgevqa.cli.main import main; main()"
BUDGETS = {"import_seconds": 0.3}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    picture = PICTURES / "scene-4.png"
    ask = [arguments.python, "-c", COMMAND, "ask", arguments.bundle, picture, "how many red shapes are there?"]
    with tempfile.TemporaryDirectory() as cache:
        env = {"EDGEVQA_CACHE_DIR": cache}
        first = measure(ask, env=env)  # hashes every file
        rows = {
            "ask": [measure(ask, env=env) for _ in range(arguments.runs)],
            "import edgevqa.runtime": _imports(arguments.python, "import edgevqa.runtime", arguments.runs),
            "import the pipeline": _imports(arguments.python, "from edgevqa.runtime import Pipeline", arguments.runs),
            "python alone": _imports(arguments.python, "pass", arguments.runs),
        }
    found = {name: summary(runs) for name, runs in rows.items()}
    found["ask, hashes not yet checked"] = summary([first])
    answer = first.output.strip()
    written = {"machine": describe_machine(), "answer": answer, "runs": arguments.runs, "figures": found}
    RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(f"{name:30} {row['median_seconds']:.3f} s ({row['min_seconds']:.3f} to {row['max_seconds']:.3f}), "
              f"{row['peak_mb']:.0f} MB")  # fmt: skip
    imported = found["import edgevqa.runtime"]["median_seconds"] - found["python alone"]["median_seconds"]
    print(f"import edgevqa.runtime costs {imported:.3f} s; budget {BUDGETS['import_seconds']} s")


def summary(runs: list[Measured]) -> dict[str, float]:
    """Median and range of wall seconds, median processor seconds, largest peak."""
    seconds = [run.seconds for run in runs]
    return {
        "median_seconds": round(statistics.median(seconds), 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "median_cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 4),
        "peak_mb": round(max(run.peak_mb for run in runs), 1),
    }


def _imports(python: str, code: str, runs: int) -> list[Measured]:
    measure([python, "-c", code])  # compiles and warms the page cache
    return [measure([python, "-c", code]) for _ in range(runs)]


if __name__ == "__main__":
    main()
