"""Weights of a decoder of more than 1 B parameters alone quantised to INT8 and INT4: size, memory, speed, agreement.

    python -m benchmarks.weight_only SCRATCH [--shape llava-1.1b] [--tokens 48] [--threads 1] [--reference]

The big decoder has random weights (a LLaVA folder of TinyLlama's shape): its figures tell size, memory and speed, and how far
logits move, not how good answers are. `--reference` adds the packaged, trained model, whose decoder is small, with its real
answers. The variants of a backend take turns token by token in one process; each one's memory is that of a process of its own.
SCRATCH needs 12 GB. Writes benchmarks/results/weight_only.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.big_folder import SHAPES, write
from benchmarks.memory import Watched, watch
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "weight_only.json"
COMMAND = "from edgevqa.cli.main import main; main()"
MODES = {  # how the decoder is quantised, and the variant's name in a bundle without calibration
    "weight-int8": "int8-u8-fp32-decoder-w8-only",
    "weight-int4": "int8-u8-fp32-decoder-w4-only",
}
BACKENDS = ("onnxruntime", "openvino")
DATA = "scenes:7:400"


def main() -> None:
    """Make bundles, measure, print, write, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llava-1.1b")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundle", type=Path, help="a float bundle of that shape, which is kept")
    parser.add_argument("--reference", action="store_true")
    arguments = parser.parse_args()
    part = "reference" if arguments.reference else "big"
    folder = arguments.scratch / f"weight-only-{part}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = reference(folder) if arguments.reference else big(folder, arguments)
    finally:
        shutil.rmtree(folder)
    written: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    written |= {"machine": describe_machine(), part: found}
    RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(written, indent=2))


def edgevqa(*words: str | Path) -> Watched:
    """One command in a process of its own."""
    return watch([sys.executable, "-c", COMMAND, *words])


def big(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The big decoder's table."""
    bundles = {"fp32": arguments.bundle or folder / "fp32.bundle"}
    if arguments.bundle is None:
        edgevqa("export", write(folder / "checkpoint", arguments.shape), "-o", bundles["fp32"], "--no-verify")
        shutil.rmtree(folder / "checkpoint")
    making: dict[str, Any] = {}
    for mode in MODES:
        bundles[mode] = folder / f"{mode}.bundle"
        shutil.copytree(bundles["fp32"], bundles[mode], copy_function=os.link)
        found = edgevqa("quantize", bundles[mode], "--precision", "int8", "--target", "cpu", "--decoder", mode)
        making[mode] = {
            "seconds": round(found.seconds),
            "cpu_seconds": round(found.cpu_seconds),
            "peak_anonymous_mb": round(found.peak_anonymous_mb),
            "peak_mapped_mb": round(found.peak_mapped_mb),
        }
        print(mode, making[mode], flush=True)
    graph = Bundle.open(bundles["fp32"], check=False).graph("fp32", "language_decoder")
    sizes = {name: decoder_bytes(path, variant_of(name)) for name, path in bundles.items()}
    found_backends = {backend: measured(bundles, backend, arguments) for backend in BACKENDS}
    return {
        "shape": arguments.shape,
        "weights": "random",
        "decoder_parameters": graph.parameters,
        "decoder_mb": {name: round(size / 2**20) for name, size in sizes.items()},
        "size_ratio": {name: round(size / sizes["fp32"], 3) for name, size in sizes.items()},
        "quantizing": making,
        "tokens": arguments.tokens,
        "threads": arguments.threads,
        "load_average": round(os.getloadavg()[0], 1),
        "backends": found_backends,
    }


def variant_of(name: str) -> str:
    """The variant in the bundle that is named so here."""
    return MODES.get(name, name)


def decoder_bytes(path: Path, variant: str) -> int:
    """Bytes of the decoder's tensors."""
    from edgevqa.calibration.reading import load_graph

    model = load_graph(Bundle.open(path, check=False).graph_path(variant, "language_decoder"))
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def measured(bundles: Mapping[str, Path], backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of each variant by itself, then all of them token by token in turns."""
    run = [sys.executable, "-m", "benchmarks.weight_only_run", backend, str(arguments.threads), str(arguments.tokens)]
    alone = {name: watch([*run, "memory", f"{variant_of(name)}={path}"]) for name, path in bundles.items()}
    pairs = [f"{variant_of(name)}={path}" for name, path in bundles.items()]
    timed = json.loads(watch([*run, "turns", *pairs]).output.splitlines()[-1])
    rows = {
        name: {
            "peak_anonymous_mb": round(alone[name].peak_anonymous_mb),
            "peak_mapped_mb": round(alone[name].peak_mapped_mb),
            **json.loads(alone[name].output.splitlines()[-1]),
            **figures,
        }
        for name, figures in zip(bundles, timed, strict=True)
    }
    print(backend, json.dumps(rows, indent=1), flush=True)
    return rows


def reference(folder: Path) -> dict[str, Any]:
    """The packaged model, calibrated; its decoder with quantised weights, answers compared with the float model's."""
    bundle = folder / "reference.bundle"
    edgevqa("export", "reference", "-o", bundle)
    edgevqa("calibrate", bundle, "--data", DATA, "--samples", "64")
    rows: dict[str, Any] = {}
    modes: Any = ("int8", *MODES)
    for mode in modes:
        from edgevqa.calibration import QuantizeOptions, quantize

        options = QuantizeOptions(
            precision="int8", targets=("cpu",), decoder=mode, data=DATA, samples=200, min_agreement=0
        )
        variant = quantize(bundle, options).variants[0]
        check = variant.check
        rows[mode] = {
            "size_mb": round(variant.size_bytes / 2**20, 1),
            "check": None if check is None else asdict_of(check),
        }
        print(mode, rows[mode], flush=True)
    return {"data": DATA, "decoders": rows}


def asdict_of(check: Any) -> dict[str, Any]:
    """A record as JSON values."""
    import msgspec

    return dict(msgspec.to_builtins(check)) if hasattr(check, "__struct_fields__") else asdict(check)


if __name__ == "__main__":
    main()
