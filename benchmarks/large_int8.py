"""INT8 at real size, CLIP ViT-L/14-336 with Flan-T5-base: how small and how fast beside float32 on the same backend.

    python -m benchmarks.large_int8 SCRATCH [--clip large] [--t5 base] [--samples 16] [--rounds 7]

The weights are random, in the published format, with outliers planted as trained vision transformers have them: a few
channels of the residual stream reach |x| of about 1,000. SCRATCH needs about 12 GB and is left as it is: what is there
is used again by another run. A round is one answer about a new picture and one more about the same; float32 and INT8
take turns, with as many tokens each. Bars: an INT8 variant takes at most 0.30 of float32's size, and on the best backend
a first answer comes at least 2.5 times as fast. Exit code 1: a bar fails. Writes benchmarks/results/large_int8.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec
import torch

from benchmarks.official_checkpoint import CLIP, T5, write
from benchmarks.process import Measured, measure
from benchmarks.quantization.peer_variants import size_mb
from benchmarks.quantization.speed import Speedup, compare_speed
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.sessions import BACKENDS

RESULT = Path(__file__).parent / "results" / "large_int8.json"
SIZE_BAR, SPEED_BAR = 0.30, 2.5
VARIANTS = {"onnxruntime": ("cpu", "int8-u8-fp32"), "openvino": ("openvino", "int8-s8-fp32")}
"""For each backend the target that `quantize` is told, and the variant that it makes."""
OUTLIER, OUTLIER_CHANNELS, OUTLIER_LAYER = 1000.0, 3, 1
CALIBRATED_WITH, ASKED = "scenes:3:256", "scenes:7:64"
TOKENS = 4  # of every answer: random weights would never end one
COMMAND = "from edgevqa.cli.main import main; main()"


def main() -> None:
    """Make the bundle, measure, print, write."""
    arguments = _arguments()
    scratch: Path = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["EDGEVQA_CACHE_DIR"] = str(scratch / "cache")
    bundle = scratch / "large.bundle"
    steps = make_bundle(arguments, bundle)
    backends = [name for name in VARIANTS if BACKENDS[name].installed()]
    speeds = {name: _speed(bundle, name, arguments.rounds) for name in backends}
    peaks = {name: _peaks(bundle, name) for name in backends}
    sizes = {name: size_mb(Bundle.open(bundle), name) for name in ("fp32", *(VARIANTS[each][1] for each in backends))}
    ratios = {name: round(size / sizes["fp32"], 4) for name, size in sizes.items()}
    failed = missed(ratios, speeds)
    written = {
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "model": f"CLIP {arguments.clip}, Flan-T5 {arguments.t5}, random weights with planted outliers",
        "parameters": Bundle.open(bundle).manifest.source.parameters,
        "calibration": {"data": CALIBRATED_WITH, "samples": arguments.samples},
        "bars": {"size_ratio": SIZE_BAR, "speed": SPEED_BAR},
        "size_mb": {name: round(value, 1) for name, value in sizes.items()},
        "size_ratio": ratios,
        "speed": msgspec.to_builtins(speeds),
        "peak_mb": peaks,
        "steps": steps,
        "failed": failed,
    }
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
    for name, ratio in ratios.items():
        print(f"{name}: {sizes[name]:,.0f} MB, {ratio:.3f} of float32")
    for name, speed in speeds.items():
        print("\n".join(lines_of(speed, peaks[name])))
    print("\n".join(failed) if failed else "all bars hold")
    sys.exit(1 if failed else 0)


def make_bundle(arguments: argparse.Namespace, bundle: Path) -> dict[str, dict[str, float]]:
    """Checkpoint, export, calibration and INT8 variants, each unless it is there; seconds and peak memory of each."""
    steps: dict[str, dict[str, float]] = {}
    if not bundle.exists():
        root: Path = arguments.scratch / "checkpoint"
        checkpoint = write(root, clip=arguments.clip, t5=arguments.t5, tokenizer=arguments.tokenizer)
        plant_outliers(checkpoint)
        config = root / "config.yaml"
        steps["export"] = _step("export", checkpoint, "--config", config, "--root", root, "-o", bundle, "--no-verify")
    if Bundle.open(bundle).manifest.calibration is None:
        steps["calibrate"] = _step("calibrate", bundle, "--data", CALIBRATED_WITH, "--samples", str(arguments.samples))
    for backend, (target, variant) in VARIANTS.items():
        if BACKENDS[backend].installed() and variant not in Bundle.open(bundle).manifest.variants:
            steps[variant] = _step("quantize", bundle, "--precision", "int8", "--target", target)
    return steps


def plant_outliers(checkpoint: Path) -> None:
    """Let an early layer's second Linear add `OUTLIER` to a few channels; later norms weigh those channels down."""
    state = torch.load(checkpoint, mmap=True)
    weights: dict[str, torch.Tensor] = state["model"]
    bias = next(key for key in weights if f".layers.{OUTLIER_LAYER}.mlp.fc2.bias" in key)
    width = weights[bias].shape[0]
    channels = torch.randperm(width, generator=torch.Generator().manual_seed(1))[:OUTLIER_CHANNELS]
    weights[bias] = weights[bias].clone()
    weights[bias][channels] += OUTLIER
    # A norm divides by the outliers' size: its gains bring the other channels back to about 1, the outliers to about 10.
    spread = OUTLIER * (OUTLIER_CHANNELS / width) ** 0.5
    for key, gain in list(weights.items()):
        layer = key.partition(".encoder.layers.")[2].partition(".")[0]
        if layer.isdecimal() and int(layer) > OUTLIER_LAYER and "layer_norm" in key and key.endswith("weight"):
            scaled = gain * spread
            scaled[channels] = 10 * spread / OUTLIER
            weights[key] = scaled
    new = checkpoint.with_suffix(".new")
    torch.save(state, new)
    new.replace(checkpoint)


def missed(ratios: dict[str, float], speeds: dict[str, Speedup]) -> list[str]:
    """The bars that do not hold; `ratios` are sizes in parts of float32's."""
    over = {name: ratio for name, ratio in ratios.items() if name != "fp32" and ratio > SIZE_BAR}
    failed = [f"{name} takes {ratio:.3f} of float32's size, over {SIZE_BAR}" for name, ratio in over.items()]
    best = max(speeds.values(), key=lambda speed: speed.ratio["first"].median)
    times = best.ratio["first"].median
    if times < SPEED_BAR:
        failed.append(f"{best.variant} on {best.backend} is {times:.2f} x as fast as float32, under {SPEED_BAR}")
    return failed


def lines_of(speed: Speedup, peaks: dict[str, float]) -> list[str]:
    """Latencies side by side, for people."""
    lines = [
        f"{speed.backend}, {speed.rounds} rounds; a process's peak memory: float32 {peaks['fp32']:,.0f} MB, "
        f"INT8 {peaks[speed.variant]:,.0f} MB",
        f"{'':18} {'float32 ms':>12} {'INT8 ms':>12} {'times as fast':>14} (10 % to 90 %)",
    ]
    for name, ratio in speed.ratio.items():
        both = f"{speed.baseline_latency_ms[name]:12.1f} {speed.latency_ms[name]:12.1f}"
        lines.append(f"{name:18} {both} {ratio.median:14.2f} ({ratio.p10:.2f} to {ratio.p90:.2f})")
    return lines


def _speed(bundle: Path, backend: str, rounds: int) -> Speedup:
    samples = list(open_dataset(ASKED))
    variant = VARIANTS[backend][1]
    return compare_speed(bundle, variant, samples, backend=backend, rounds=rounds, max_new_tokens=TOKENS)


def _peaks(bundle: Path, backend: str) -> dict[str, float]:
    """Peak memory in MB of a whole process that answers twice, with each variant."""
    found: dict[str, float] = {}
    for variant in ("fp32", VARIANTS[backend][1]):
        bench: list[str | Path] = [
            "bench",
            bundle,
            "--runs",
            "1",
            "--warm-up",
            "0",
            "--precision",
            variant,
            "--backend",
            backend,
        ]
        found[variant] = round(_run(*bench).peak_mb, 1)
    return found


def _step(*words: str | Path) -> dict[str, float]:
    print(f"{words[0]} ...", flush=True)
    done = _run(*words)
    return {"seconds": round(done.seconds, 1), "peak_mb": round(done.peak_mb, 1)}


def _run(*words: str | Path) -> Measured:
    return measure([sys.executable, "-c", COMMAND, *words])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--clip", choices=CLIP, default="large")
    parser.add_argument("--t5", choices=T5, default="base")
    parser.add_argument("--tokenizer", type=Path, help="default: the reference model's; --t5 tiny needs a smaller one")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples; random weights need few")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a backend")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
