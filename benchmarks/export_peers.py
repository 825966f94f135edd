r"""Our ONNX graphs beside those of transformers.exporters and optimum-onnx: the same models, inputs and runtime.

    python -m benchmarks.export_peers --optimum-python optimum/bin/python [--only MODEL]... [--seconds 15]
        [--keep FOLDER] [-o benchmarks/results/export_peers.json]

Every family has a random model of 4 to 6 layers, 256 to 384 wide, for pictures of 224 pixels (Perceiver: 56), made here and
saved as the hub has it; every exporter gets that folder, with its defaults, and traces two rows of 7 words, one padded
(optimum chooses its own). All graphs are compared with eager PyTorch in float32 on three rows of 9 words: a graph that only
takes the rows that were traced is `frozen`, one whose outputs are others, or lack the answer, is `wrong`. Then both are timed
in turn on the same inputs, at batch 1 and 12 words where both take them: one forward of classifiers and encoders; from
picture and prompt to the logits of the next token for the others (theirs in one graph, or optimum's encoder and decoder; ours
graph by graph with the runtime's sessions); and one token with a past of the prompt, where both have a graph for it.

ONNX Runtime on the CPU, one thread a session: theirs with its defaults, ours as our runtime opens and calls them. Times are
processor time of that thread, so that other work on the machine counts little; wall time is in the JSON. Exit code 1: another
exporter is faster than ours (its ratio's 95% interval ends below 0.97), or right where ours is not.

The environments (Python 3.11):

    python -m venv peers && peers/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    peers/bin/pip install transformers==5.23.0 onnx==1.23.2 onnxruntime==1.31.1 onnxscript pytest -e '.[export,cpu]'
    python -m venv optimum && optimum/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    optimum/bin/pip install optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 onnx==1.23.2 onnxruntime==1.31.1
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.exporters.export_rows import Row, ahead, table
from edgevqa.runtime.machine import describe_machine

TOOLS = ("edgevqa", "transformers", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
OPTIMUM_TOOLS = ("optimum-onnx", "optimum", "transformers", "torch", "onnx", "onnxruntime")
RESULT = Path(__file__).parent / "results" / "export_peers.json"


def main() -> None:
    """Export, compare, time, print, write."""
    arguments = _arguments()
    from benchmarks.exporters.measure import Setting, measure, noise
    from benchmarks.exporters.subjects import SUBJECTS

    chosen = [subject for subject in SUBJECTS if not arguments.only or subject.name in arguments.only]
    rows = _others(arguments.output, [subject.name for subject in chosen]) if arguments.only else []
    with tempfile.TemporaryDirectory(prefix="edgevqa-exporters-") as temporary:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(temporary) / "cache")
        scratch = arguments.keep or Path(temporary)
        setting = Setting(scratch=scratch.resolve(), optimum=arguments.optimum_python, seconds=arguments.seconds)
        floor = {"two sessions of our graph of vit": noise(setting)}
        for subject in chosen:
            for row in measure(subject, setting):
                rows.append(row)
                _write(arguments, rows, floor)
                print("\n".join(table([row])[2:]), flush=True)
    rows.sort(key=lambda row: [subject.name for subject in SUBJECTS].index(row.model))
    _write(arguments, rows, floor)
    print("\n".join(table(rows)))
    lost = ahead(rows)
    print("\n".join(lost) if lost else "no other exporter is faster or righter than ours")
    sys.exit(1 if lost else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--optimum-python", type=Path, help="of the environment with optimum-onnx; without it, no such rows"
    )
    parser.add_argument(
        "--only", action="append", default=[], help="a model; may be repeated. The other rows of the result stay"
    )
    parser.add_argument("--seconds", type=float, default=15, help="for each pair that is timed")
    parser.add_argument("--keep", type=Path, help="a folder that keeps models and graphs for the next run")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


def _others(result: Path, names: Sequence[str]) -> list[Row]:
    """The rows of an earlier result that are not measured again."""
    if not result.exists():
        return []
    rows = msgspec.convert(msgspec.json.decode(result.read_bytes())["rows"], list[Row])
    return [row for row in rows if row.model not in names]


def _write(arguments: argparse.Namespace, rows: Sequence[Row], floor: object) -> None:
    written = {
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "tools": {name: importlib.metadata.version(name) for name in TOOLS},
        "optimum_environment": _optimum_tools(arguments.optimum_python),
        "threads": 1,
        "noise": msgspec.to_builtins(floor),
        "rows": msgspec.to_builtins(list(rows)),
        "ahead_of_ours": ahead(rows),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")


def _optimum_tools(python: Path | None) -> dict[str, str]:
    if python is None:
        return {}
    asked = f"import importlib.metadata as m\nfor n in {OPTIMUM_TOOLS!r}: print(n, m.version(n))"
    told = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in told.splitlines())


if __name__ == "__main__":
    main()
