"""Build TensorRT-RTX engines of every graph and precision of a bundle, without a GPU: sizes, times, memory.

    python -m benchmarks.engine_builds BUNDLE [--data scenes:3:1024] [--samples 256]

The bundle is copied, calibrated where it is not, and quantised to FP16, INT8 and mixed for target `rtx`; each engine has
two profiles, one row and 1 to 8. Nothing is executed. Writes benchmarks/results/engine_builds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from edgevqa.calibration import CalibrateOptions, QuantizeOptions, calibrate, quantize
from edgevqa.export.engine.build import BuiltEngines, build
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "engine_builds.json"
TARGET = "rtx"


def main() -> None:
    """Quantise, build, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="scenes:3:1024")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgevqa-engines-") as scratch:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(scratch) / "cache")
        path = Path(scratch) / "engines.bundle"
        shutil.copytree(arguments.bundle, path)
        prepare(path, arguments.data, arguments.samples)
        rows = [row_of(build(path, BuildOptions(target=TARGET, precision=name))) for name in VARIANTS]
        rows = [{**row, "weights_mb": weights_mb(Bundle.open(path), row["variant"])} for row in rows]
    written = {"machine": describe_machine(), "executed": False, "rows": rows}
    arguments.output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


VARIANTS = ("fp32", "fp16", "int8", "mixed")


def prepare(path: Path, data: str, samples: int) -> None:
    """Calibrate and add the variants."""
    if Bundle.open(path).manifest.calibration is None:
        calibrate(path, CalibrateOptions(data=data, samples=samples))
    quantize(path, QuantizeOptions(precision="fp16", targets=(TARGET,)))
    quantize(path, QuantizeOptions(precision="int8", targets=(TARGET,), data=data))
    quantize(path, QuantizeOptions(precision="mixed", targets=(TARGET,), data=data, max_drop=0.5, time_limit_s=120))


def row_of(built: BuiltEngines) -> dict[str, Any]:
    """The figures of one variant, and a line on the terminal."""
    engines = built.record.graphs
    row = {
        "variant": built.record.variant,
        "tensorrt": ".".join(map(str, built.record.tensorrt_version)),
        "compute_capabilities": built.record.compute_capabilities,
        "seconds": round(sum(engine.seconds for engine in engines.values()), 1),
        "size_mb": round(sum(engine.size_bytes for engine in engines.values()) / 1e6, 1),
        "graphs": {
            name: {
                "seconds": engine.seconds,
                "size_mb": round(engine.size_bytes / 1e6, 2),
                "peak_memory_mb": engine.peak_memory_mb,
                "profiles": len(engine.profiles),
                "in_fp32": engine.high_operators,
            }
            for name, engine in engines.items()
        },
    }
    print(f"{row['variant']}: {len(engines)} engines, {row['size_mb']} MB, {row['seconds']} s", flush=True)
    return row


def weights_mb(bundle: Bundle, variant: str) -> float:
    """The variant's ONNX graphs with their weights."""
    return round(sum(file.size_bytes for file in bundle.variant(variant).files()) / 1e6, 1)


if __name__ == "__main__":
    main()
