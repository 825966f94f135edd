"""Build TensorRT-RTX engines of every graph and precision of a bundle, without a GPU: sizes, times, memory.

    python -m benchmarks.engine_builds BUNDLE [--data scenes:3:1024] [--samples 256] [--precisions fp32,int8]
        [--batch 1,4,8 --batch 8] [-o FILE]

The bundle is copied, calibrated where it is not, and quantised to the precisions (FP16, INT8 and mixed, unless told) for
target `rtx`; unless told, each engine has two profiles, one row and 1 to 8. Nothing is executed. Writes
benchmarks/results/engine_builds.json; engine_builds_large.json is CLIP ViT-L/14-336 with Flan-T5-base, of the bundle that
`python -m benchmarks.large_int8` makes.
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
BATCH = (1, 4, 8)
PRECISIONS = ("fp32", "fp16", "int8", "mixed")


def main() -> None:
    """Quantise, build, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="scenes:3:1024")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=list(PRECISIONS))
    parser.add_argument("--batch", type=_sizes, action="append", help="may be repeated: one build each")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgevqa-engines-") as scratch:
        os.environ["EDGEVQA_CACHE_DIR"] = str(Path(scratch) / "cache")
        path = Path(scratch) / "engines.bundle"
        shutil.copytree(arguments.bundle, path)
        prepare(path, arguments)
        plans = [
            BuildOptions(target=TARGET, precision=name, batch=batch)
            for batch in arguments.batch or [BATCH]
            for name in arguments.precisions
        ]
        rows = [row_of(build(path, plan), plan.batch) for plan in plans]
        rows = [{**row, "weights_mb": weights_mb(Bundle.open(path), row["variant"])} for row in rows]
        model = model_of(Bundle.open(path))
    written = {"machine": describe_machine(), "model": model, "executed": False, "rows": rows}
    arguments.output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def model_of(bundle: Bundle) -> dict[str, Any]:
    """What was built: the model, and how large its float32 graphs are, from which builds are estimated."""
    source = bundle.manifest.source
    graphs = {
        name: {"parameters": graph.parameters, "operators": sum(graph.nodes.values())}
        for name, graph in bundle.variant("fp32").graphs.items()
    }
    return {"source": source.id, "parameters": source.parameters, "graphs": graphs}


def prepare(path: Path, arguments: argparse.Namespace) -> None:
    """Calibrate and add the variants."""
    data = arguments.data
    if Bundle.open(path).manifest.calibration is None:
        calibrate(path, CalibrateOptions(data=data, samples=arguments.samples))
    for name in set(arguments.precisions) & {"fp16", "int8"}:
        quantize(path, QuantizeOptions(precision=name, targets=(TARGET,)))
    if "mixed" in arguments.precisions:
        quantize(path, QuantizeOptions(precision="mixed", targets=(TARGET,), data=data, max_drop=0.5, time_limit_s=120))


def row_of(built: BuiltEngines, batch: tuple[int, ...]) -> dict[str, Any]:
    """The figures of one variant, and a line on the terminal."""
    engines = built.record.graphs
    row = {
        "variant": built.record.variant,
        "batch": list(batch),
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
    print(
        f"{row['variant']}, batch {batch}: {len(engines)} engines, {row['size_mb']} MB, {row['seconds']} s", flush=True
    )
    return row


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def weights_mb(bundle: Bundle, variant: str) -> float:
    """The variant's ONNX graphs with their weights."""
    return round(sum(file.size_bytes for file in bundle.variant(variant).files()) / 1e6, 1)


if __name__ == "__main__":
    main()
