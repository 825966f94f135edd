"""Every backend that can run here, beside PyTorch: answers, latency, throughput, memory, energy, and the device's bounds.

    python -m benchmarks.gpu SCRATCH [--model large] [--rounds 30] [--batches 1,2,4,8,16,32] [--samples 512]
    python -m benchmarks.gpu SCRATCH --tiny [--bundle BUNDLE]

Measured are the reference model and CLIP ViT-L/14-336 with Flan-T5-base (random weights), each by PyTorch eager and
compiled, ONNX Runtime's CUDA, TensorRT and TensorRT-RTX providers, and engines of TensorRT and TensorRT-RTX, which are
built first; all in FP16, each in a process of its own. Answers are compared with the float bundle's on the CPU. What
cannot run is named with the reason. SCRATCH keeps bundles and engines for another run (20 GB).

Bars, where there is a GPU: vision graphs of the large model at batch 8 reach 55 % of the measured matrix rate; a first
answer comes 3 times as fast as eager PyTorch's; 99.9 % of the reference model's answers are those of the float bundle.
Exit code 1: a bar fails. `--tiny` takes the CPU and the reference model alone, checks no bar, and shows that all of it
runs. Writes benchmarks/results/gpu.json (or --output).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.gpu_parts.figures import EAGER, Figures, Model, Roofline, Task, agreement, missed, utilisation
from benchmarks.gpu_parts.roofline import measure_roofline
from benchmarks.official_checkpoint import write
from edgevqa.export.sources import reference_folder
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
COMMAND = "from edgevqa.cli.main import main; main()"
FLOAT = "onnxruntime"
ON_GPU = ("torch-eager", "torch-compile", "ort-cuda", "ort-trt", "ort-rtx", "tensorrt", "tensorrt-rtx")
CALIBRATED_WITH = "scenes:3:256"
WORDS = 12
FEW_SAMPLES = 32  # of the large model: its weights are random, and a CPU answers it slowly


def main() -> None:
    """Make what is missing, measure, print, write."""
    arguments = _arguments()
    scratch: Path = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("EDGEVQA_CACHE_DIR", str(scratch / "cache"))
    device = "cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu"
    roofline = measure_roofline(device, size=8192, copied_mb=1000) if device == "cuda" else _small_roofline()
    models = [_reference(scratch, arguments.bundle, tiny=arguments.tiny)] if arguments.model != "large" else []
    if arguments.model != "reference":
        models.append(_large(scratch))
    results = {model.name: _measure(model, arguments, device, scratch, roofline) for model in models}
    failed = missed(results) if device == "cuda" else []
    written = {
        "machine": describe_machine(),
        "torch": str(torch.__version__),
        "device": device,
        "roofline": roofline,
        "models": results,
        "bars_checked": device == "cuda",
        "failed": failed,
    }
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
    print("\n".join(table(results, roofline)))
    print("\n".join(failed) if failed else "all bars hold" if device == "cuda" else "no GPU: no bar was checked")
    sys.exit(1 if failed else 0)


def _measure(
    model: Model, arguments: argparse.Namespace, device: str, scratch: Path, roofline: Roofline
) -> dict[str, Any]:
    """Every runner of a model, the float one on the CPU first."""
    precision = "fp16" if device == "cuda" else "fp32"
    batches = tuple(int(part) for part in arguments.batches.split(","))
    rows: dict[str, dict[str, Any]] = {}
    not_run: dict[str, str] = {}
    reference: list[str] = []
    for runner in (FLOAT, *ON_GPU):
        on_cpu = runner == FLOAT
        reason = None if on_cpu else _cannot(runner, device) or _prepare(runner, model)
        if reason is not None:
            not_run[runner] = reason
            continue
        task = Task(
            runner=runner,
            model=model,
            precision="fp32" if on_cpu else precision,
            rounds=min(arguments.rounds, 3) if on_cpu else arguments.rounds,
            batches=batches[:1] if on_cpu else batches,
            samples=arguments.samples if model.name == "reference" else min(arguments.samples, FEW_SAMPLES),
            device="cpu" if on_cpu else device,
        )
        print(f"{model.name}: {runner} ...", flush=True)
        figures = _run(task, scratch)
        if isinstance(figures, str):
            not_run[runner] = figures
            continue
        reference = figures.answers if on_cpu else reference
        rows[runner] = {
            "figures": figures,
            "precision": task.precision,
            "agreement": agreement(figures, reference) if reference else 0.0,
            "utilisation": {} if on_cpu else utilisation(figures, model, roofline, WORDS),
        }
    return {"rows": rows, "not_run": not_run}


def _run(task: Task, scratch: Path) -> Figures | str:
    """The figures of a process, or why there are none."""
    given, found = scratch / "task.json", scratch / "figures.json"
    given.write_bytes(msgspec.json.encode(task))
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_parts.worker", str(given), str(found)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if found.exists():
        return msgspec.json.decode(found.read_bytes(), type=Figures)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {done.returncode}"


def _cannot(runner: str, device: str) -> str | None:
    """Why a runner cannot run here, as far as that is known before it is tried."""
    if runner.startswith("torch"):
        if runner == EAGER or device == "cuda":
            return None
        return "compiling is measured on a GPU alone"
    row = BACKENDS[runner]
    if not row.installed():
        return str(row.missing())
    return None if device == "cuda" else "PyTorch finds no CUDA GPU here" if not torch.cuda.is_available() else "--tiny"


def _prepare(runner: str, model: Model) -> str | None:
    """Build the engines of a backend that runs engines; the reason where that fails."""
    flavour = None if runner.startswith("torch") else BACKENDS[runner].flavour
    if flavour is None:
        return None
    target = "rtx" if flavour == "tensorrt-rtx" else _server_target()
    print(f"{model.name}: building engines for {target} ...", flush=True)
    extra = ["--compute-capability", _capability()] if target == "rtx" else []
    command = ["build", model.bundle, "--target", target, "--precision", "fp16", "--batch", "1,8,32", *extra]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return None if done.returncode == 0 else lines[-1] if lines else f"build ended with {done.returncode}"


def _server_target() -> str:
    """The row of targets for the TensorRT that is installed."""
    major = BACKENDS["tensorrt"].version().partition(".")[0]
    return f"server-trt{major}" if f"server-trt{major}" in TARGETS else "server-trt11"


def _capability() -> str:
    return ".".join(str(part) for part in torch.cuda.get_device_capability())


def _reference(scratch: Path, bundle: Path | None, *, tiny: bool) -> Model:
    """The packaged model's bundle, with an FP16 variant unless it is only shown that everything runs."""
    path = bundle.resolve() if bundle is not None else scratch / "reference.bundle"
    if not path.exists():
        _edgevqa("export", "reference", "-o", path, "--no-verify")
    if not tiny:
        _add_fp16(path)
    return Model(name="reference", bundle=str(path), source=str(reference_folder()))


def _large(scratch: Path) -> Model:
    """CLIP ViT-L/14-336 with question fusion and Flan-T5-base: the published checkpoint's shape, random weights."""
    root, path = scratch / "checkpoint", scratch / "large.bundle"
    checkpoint, config = root / "ckpt.pth", root / "config.yaml"
    if not checkpoint.exists():
        write(root, clip="large", t5="base")
    if not path.exists():
        _edgevqa("export", checkpoint, "--config", config, "--root", root, "-o", path, "--no-verify")
    _add_fp16(path)
    return Model(name="large", bundle=str(path), source=str(checkpoint), config=str(config), root=str(root))


def _add_fp16(bundle: Path) -> None:
    """Add the FP16 variant, unless it is there; casting wants to know how large the values get."""
    manifest = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    if "fp16" not in manifest["variants"]:
        if manifest.get("calibration") is None:
            _edgevqa("calibrate", bundle, "--data", CALIBRATED_WITH, "--samples", "128")
        _edgevqa("quantize", bundle, "--precision", "fp16")


def _edgevqa(*words: str | Path) -> None:
    print(f"edgevqa {words[0]} ...", flush=True)
    subprocess.run([sys.executable, "-c", COMMAND, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _small_roofline() -> Roofline:
    return measure_roofline("cpu", size=512, copied_mb=16)


def table(results: dict[str, dict[str, Any]], roofline: Roofline) -> list[str]:
    """All rows side by side, then what did not run and why."""
    lines = [
        f"{roofline.device}: {roofline.matmul_tflops:.3g} TFLOP/s in {roofline.dtype} products of {roofline.matmul_size}, "
        f"copying {roofline.copy_gb_per_s:,.0f} GB/s",
        f"{'model':10} {'runner':14} {'precision':9} {'first ms':>9} {'p90':>8} {'p99':>8} {'next ms':>8} {'tokens/s':>9} "
        f"{'answers/s':>10} {'GPU MB':>8} {'J/answer':>9} {'vision':>7} {'agree':>7}",
    ]
    for model, result in results.items():
        lines += [_line(model, runner, row) for runner, row in result["rows"].items()]
    for model, result in results.items():
        lines += [f"{model}: {runner} not run: {reason}" for runner, reason in result["not_run"].items()]
    return lines


def _line(model: str, runner: str, row: dict[str, Any]) -> str:
    figures: Figures = row["figures"]
    first, later = figures.latency_ms["first"], figures.latency_ms["next"]
    rate = max((batch / spread.p50 * 1e3 for batch, spread in figures.answer_ms.items()), default=0.0)
    share = max(row["utilisation"].values(), default=None)
    return (
        f"{model:10} {runner:14} {row['precision']:9} {first.p50:9.2f} {first.p90:8.2f} {first.p99:8.2f} "
        f"{later.p50:8.2f} {_or_dash(figures.decode_tokens_per_s, '.0f'):>9} {rate:10.1f} "
        f"{_or_dash(figures.gpu_mb, ',.0f'):>8} {_or_dash(figures.joules_per_answer, '.3f'):>9} "
        f"{_or_dash(share, '.1%'):>7} {row['agreement']:7.2%}"
    )


def _or_dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the CPU and the reference model alone, few rounds")
    parser.add_argument("--bundle", type=Path, help="the reference model's bundle, where there is one already")
    parser.add_argument("--model", choices=("both", "reference", "large"), default="both")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--samples", type=int, default=512, help="questions whose answers are compared")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.model, arguments.rounds, arguments.batches, arguments.samples = "reference", 1, "1,2", 2
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: two cores at most, and those may be busy
    return arguments


if __name__ == "__main__":
    main()
