"""Export a LLaVA of real size from bfloat16 weights, and measure the memory that it needs.

    python -m benchmarks.big_checkpoint SCRATCH [--shape llava-1.5-7b] [--verify] [--limit]

The weights are random, in the hub's format and names. SCRATCH needs three times the checkpoint: 42 GB for LLaVA-1.5-7B, whose
float32 graphs have 28 GB. Without --verify the graphs are written and not compared with PyTorch; the row says so. With --limit
(Linux, root) the kernel gives the export no more memory than the bar, the pages of files that it reads and writes included;
nothing else that uses torch may run then, for its pages would be the other's.
Writes or replaces the shape's row in benchmarks/results/big_checkpoint.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.memory import Watched, memory_group, watch
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "big_checkpoint.json"
FACTOR, ALLOWANCE_MB = 1.5, 2048  # the bar: 1.5 x the largest graph's weights as the checkpoint stores them, plus 2 GB
COMMAND = "from edgevqa.cli.main import main; main()"
BAR = (
    "anonymous memory, which is what a process needs: at most 1.5 x the weights of the largest graph, in the checkpoint's own "
    "2 bytes a weight, plus 2 GB. Mapped pages of checkpoint, graphs and cases come and go with the memory that is free; "
    "held_with_mapped_pages counts them too"
)


def main() -> None:
    """Make the folder, export it, print, write, remove both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--shape", default="llava-1.5-7b")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--limit", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.scratch / arguments.shape
    row = row_of(folder, arguments.shape, verify=arguments.verify, limit=arguments.limit)
    shutil.rmtree(folder)
    print(json.dumps(row, indent=2), flush=True)
    record(row)
    if not row["held"]:
        sys.exit(1)


def row_of(folder: Path, shape: str, *, verify: bool, limit: bool) -> dict[str, Any]:
    """Export the shape in a process of its own; the folder is left."""
    checkpoint = folder / "checkpoint"
    making = [sys.executable, "-m", "benchmarks.big_folder", str(checkpoint), "--shape", shape]
    subprocess.run(
        making, check=True
    )  # in a process of its own: what this one has read counts as its own, not the export's
    bundle = folder / "out.bundle"
    words: list[str | Path] = ["export", checkpoint, "-o", bundle, *([] if verify else ["--no-verify"])]
    load_before = os.getloadavg()[0]
    command = [sys.executable, "-c", COMMAND, *words]
    limit_mb = bar_mb(largest_graph(checkpoint)) if limit else None
    with nullcontext() if limit_mb is None else memory_group(limit_mb) as group:
        found = watch(command, group=group)
    return described(shape, checkpoint, Bundle.open(bundle, check=False), found) | {
        "limited_to_mb": None if limit_mb is None else round(limit_mb),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }


def bar_mb(parameters: int) -> float:
    """What the export of a checkpoint may take whose largest graph has so many parameters."""
    return FACTOR * parameters * 2 / 2**20 + ALLOWANCE_MB


def largest_graph(checkpoint: Path) -> int:
    """Parameters of the language model's decoder, the largest of the graphs; embeddings and head are a part of it."""
    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names = [name for name in tensors.keys() if "language_model" in name or "lm_head" in name]  # noqa: SIM118
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def described(shape: str, checkpoint: Path, bundle: Bundle, found: Watched) -> dict[str, Any]:
    """The row of one export."""
    manifest = bundle.manifest
    graphs = manifest.variants["fp32"].graphs
    bar = bar_mb(max(graph.parameters for graph in graphs.values()))
    parity = manifest.parity.get("fp32")
    return {
        "shape": shape,
        "parameters": manifest.source.parameters,
        "stored_as": "bfloat16",
        "checkpoint_mb": round(sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) / 2**20),
        "bundle_mb": round(sum(file.size_bytes for file in manifest.files()) / 2**20),
        "graphs": {name: graph.parameters for name, graph in graphs.items()},
        "seconds": round(found.seconds),
        "cpu_seconds": round(found.cpu_seconds),
        "peak_anonymous_mb": round(found.peak_anonymous_mb),
        "peak_mapped_mb": round(found.peak_mapped_mb),
        "peak_mb": round(found.peak_mb),
        "bar_mb": round(bar),
        "held": found.peak_anonymous_mb <= bar,
        "held_with_mapped_pages": found.peak_mb <= bar,
        "compared": "not compared with PyTorch (--no-verify)"
        if parity is None
        else {
            "worst_difference": max(row.max_abs_diff for row in parity.rows),
            "answers_identical": f"{parity.answers_identical} of {parity.answers_compared}",
            "left_out": list(parity.left_out),
        },
    }


def record(row: dict[str, Any]) -> None:
    """Put the row into the results, in place of the shape's own."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    rows = [each for each in rows if each["shape"] != row["shape"]] + [row | {"machine": describe_machine()}]
    rows.sort(key=lambda each: each["parameters"])
    written = {"bar": BAR, "rows": rows}
    RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
