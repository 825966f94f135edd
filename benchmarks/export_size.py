"""Export models of real size, with random weights in the published format, and measure time and peak memory.

    python -m benchmarks.export_size SCRATCH [--t5 base large] [--bfloat16]

SCRATCH needs about 6 GB for CLIP ViT-L/14-336 with Flan-T5-base, 11 GB with Flan-T5-large. Every export is compared
with PyTorch as usual.
Writes benchmarks/results/export_size.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.official_checkpoint import T5, write
from benchmarks.process import measure
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "export_size.json"
BAR = 2.5  # peak memory at most this many times the float32 weights
COMMAND = "from edgevqa.cli.main import main; main()"


def main() -> None:
    """Measure each size, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--clip", default="large")
    parser.add_argument("--t5", nargs="+", choices=T5, default=["base", "large"])
    arguments = parser.parse_args()
    rows = [row_of(arguments.scratch / f"{arguments.clip}-{t5}", arguments.clip, t5) for t5 in arguments.t5]
    written = {"machine": describe_machine(), "bar": BAR, "rows": rows}
    RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if any(row["peak_over_weights"] > BAR for row in rows):
        sys.exit(1)


def row_of(folder: Path, clip: str, t5: str) -> dict[str, Any]:
    """Make the checkpoint, export it in a process of its own, remove both."""
    checkpoint = write(folder, clip=clip, t5=t5)
    bundle = folder / "out.bundle"
    export: list[str | Path] = [
        "export",
        checkpoint,
        "--config",
        folder / "config.yaml",
        "--root",
        folder,
        "-o",
        bundle,
    ]
    found = measure([sys.executable, "-c", COMMAND, *export])
    manifest = Bundle.open(bundle, check=False).manifest
    weights_mb = manifest.source.parameters * 4 / 2**20
    parity = manifest.parity["fp32"]
    row: dict[str, Any] = {
        "model": f"CLIP {clip}, Flan-T5 {t5}",
        "parameters": manifest.source.parameters,
        "weights_mb": round(weights_mb),
        "bundle_mb": round(sum(file.size_bytes for file in manifest.files()) / 2**20),
        "seconds": round(found.seconds),
        "cpu_seconds": round(found.cpu_seconds),
        "peak_mb": round(found.peak_mb),
        "peak_over_weights": round(found.peak_mb / weights_mb, 2),
        "worst_difference": max(row.max_abs_diff for row in parity.rows),
        "answers_identical": f"{parity.answers_identical} of {parity.answers_compared}",
    }
    print(json.dumps(row, indent=2), flush=True)
    shutil.rmtree(folder)
    return row


if __name__ == "__main__":
    main()
