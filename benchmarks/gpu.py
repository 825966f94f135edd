"""Every backend that can run here, beside PyTorch: answers, latency, throughput, memory, energy, and the device's bounds.

    python -m benchmarks.gpu SCRATCH [--model large] [--runners ort-cuda,tensorrt] [--rounds 30] [--samples 512]
    python -m benchmarks.gpu SCRATCH --tiny [--bundle BUNDLE]

Measured are the reference model and CLIP ViT-L/14-336 with Flan-T5-base (random weights), each by PyTorch eager and
compiled, ONNX Runtime's CUDA, TensorRT and TensorRT-RTX providers, and engines of TensorRT and TensorRT-RTX, which are
built first; all in FP16, each in a process of its own. Answers are compared with the float bundle's on the CPU. What
cannot run is named with the reason, and so is what crashes, or takes longer than --limit-s; the rest goes on. SCRATCH
keeps bundles and engines for another run (20 GB), and a log of every process.

Bars, where there is a GPU: vision graphs of the large model at batch 8 reach 55 % of the measured matrix rate; a first
answer comes 3 times as fast as eager PyTorch's; 99.9 % of the reference model's answers are those of the float bundle.
Exit code 1: a bar fails. `--tiny` takes the CPU and the reference model alone, checks no bar, and shows that all of it
runs. Writes benchmarks/results/gpu.json (or --output; SCRATCH/gpu.json with --tiny) after every runner: a run that is
cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.gpu_parts.figures import EAGER, Figures, Model, Roofline, Task, agreement, missed, utilisation
from benchmarks.gpu_parts.processes import run_process
from benchmarks.gpu_parts.table import table
from edgevqa.export.sources import reference_folder
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
EDGEVQA = (sys.executable, "-c", "from edgevqa.cli.main import main; main()")
CHECKPOINT = (sys.executable, "-m", "benchmarks.official_checkpoint")
WORKER = (sys.executable, "-m", "benchmarks.gpu_parts.worker")
ROOFLINE = (sys.executable, "-m", "benchmarks.gpu_parts.roofline")
FLOAT = "onnxruntime"
ON_GPU = ("torch-eager", "torch-compile", "ort-cuda", "ort-trt", "ort-rtx", "tensorrt", "tensorrt-rtx")
MODELS = ("reference", "large")
CALIBRATED_WITH = "scenes:3:256"
WORDS = 12
FEW_SAMPLES = 32  # of the large model: its weights are random, and a CPU answers it slowly
NOT_REACHED = "the run ended before it"


class PreparationError(Exception):
    """A bundle that could not be made."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run, and where. `device` is cuda or cpu; `limit_s` is what one process may take."""

    device: str
    scratch: Path
    runners: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    samples: int
    limit_s: float


class Report:
    """What was found so far, by model. It is written after every step, so that a run that is cut off leaves it."""

    def __init__(self, path: Path, plan: Plan, models: list[str]) -> None:
        self.path, self.plan = path, plan
        self.machine = describe_machine()
        self.roofline: Roofline | None = None
        self.results: dict[str, dict[str, Any]] = {
            name: {"rows": {}, "not_run": dict.fromkeys((FLOAT, *plan.runners), NOT_REACHED)} for name in models
        }

    def failed(self) -> list[str]:
        """The bars that do not hold; none are asked of a CPU."""
        return missed(self.results) if self.plan.device == "cuda" else []

    def write(self, *, complete: bool = False) -> None:
        """Write all of it, or what there is."""
        written = {
            "machine": self.machine,
            "torch": str(torch.__version__),
            "device": self.plan.device,
            "complete": complete,
            "roofline": self.roofline,
            "models": self.results,
            "bars_checked": complete and self.plan.device == "cuda",
            "failed": self.failed() if complete else [],
        }
        draft = self.path.with_name(f"{self.path.name}.part")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
        draft.replace(self.path)


def main() -> None:
    """Make what is missing, measure, print, write."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that processes are ended too
    scratch: Path = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("EDGEVQA_CACHE_DIR", str(scratch / "cache"))
    plan = Plan(
        device="cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu",
        scratch=scratch,
        runners=tuple(arguments.runners),
        batches=tuple(arguments.batches),
        rounds=arguments.rounds,
        samples=arguments.samples,
        limit_s=arguments.limit_s,
    )
    makers: dict[str, Callable[[], Model]] = {
        "reference": lambda: _reference(plan, arguments.bundle, tiny=arguments.tiny),
        "large": lambda: _large(plan),
    }
    report = Report(arguments.output, plan, [name for name in MODELS if arguments.model in ("both", name)])
    measure(report, makers)
    report.write(complete=True)
    failed = report.failed()
    print("\n".join(table(report.results, report.roofline, plan.batches)))
    print("\n".join(failed) if failed else "all bars hold" if plan.device == "cuda" else "no GPU: no bar was checked")
    sys.exit(1 if failed else 0)


def measure(report: Report, makers: dict[str, Callable[[], Model]]) -> None:
    """The device's bounds, then every model of the report with every runner."""
    report.write()
    report.roofline = _roofline(report.plan)
    for name, result in report.results.items():
        report.write()
        try:
            model = makers[name]()
        except (PreparationError, OSError, RuntimeError) as error:  # the next model may be made all the same
            reason = f"the bundle could not be made: {error}"
            print(f"{name}: {reason}", flush=True)
            result["not_run"] = dict.fromkeys(result["not_run"], reason)
            continue
        measure_model(model, report)
    report.write()


def measure_model(model: Model, report: Report) -> None:
    """Every runner of a model, the float one on the CPU first; the report is written after each."""
    plan, result = report.plan, report.results[model.name]
    rows: dict[str, dict[str, Any]] = result["rows"]
    not_run: dict[str, str] = result["not_run"]
    reference: list[str] = []
    for runner in (FLOAT, *plan.runners):
        not_run[runner] = "the run ended while it was measured"
        report.write()
        reason = None if runner == FLOAT else _cannot(runner, plan.device) or _prepare(runner, model, plan)
        task = _task(runner, model, plan)
        figures = reason if reason is not None else _run(task, plan)
        if isinstance(figures, str):
            not_run[runner] = figures
            print(f"{model.name}: {runner} not run: {figures}", flush=True)
            continue
        del not_run[runner]
        reference = figures.answers if runner == FLOAT else reference
        rows[runner] = {
            "figures": figures,
            "precision": task.precision,
            "agreement": agreement(figures, reference),
            "utilisation": {} if runner == FLOAT else utilisation(figures, model, report.roofline, WORDS),
        }
    report.write()


def _task(runner: str, model: Model, plan: Plan) -> Task:
    on_cpu = runner == FLOAT
    return Task(
        runner=runner,
        model=model,
        precision="fp16" if plan.device == "cuda" and not on_cpu else "fp32",
        rounds=min(plan.rounds, 3) if on_cpu else plan.rounds,
        batches=plan.batches[:1] if on_cpu else plan.batches,
        samples=plan.samples if model.name == "reference" else min(plan.samples, FEW_SAMPLES),
        device="cpu" if on_cpu else plan.device,
    )


def _run(task: Task, plan: Plan) -> Figures | str:
    """The figures of a process, or why there are none."""
    name = f"{task.model.name}.{task.runner}"
    print(f"{task.model.name}: {task.runner} ...", flush=True)
    given, found = plan.scratch / f"{name}.task.json", plan.scratch / f"{name}.figures.json"
    given.write_bytes(msgspec.json.encode(task))
    found.unlink(missing_ok=True)
    reason = run_process([*WORKER, given, found], log=plan.scratch / f"{name}.log", limit_s=plan.limit_s)
    if not found.exists():
        return reason or "its process wrote no figures"
    figures = msgspec.json.decode(found.read_bytes(), type=Figures)
    ended = {} if reason is None else {"after measuring": reason}
    return msgspec.structs.replace(figures, not_run={**figures.not_run, **ended})


def _roofline(plan: Plan) -> Roofline | None:
    """The device's own bounds; None, with a note, where they cannot be measured."""
    found = plan.scratch / "roofline.json"
    found.unlink(missing_ok=True)
    reason = run_process([*ROOFLINE, plan.device, found], log=plan.scratch / "roofline.log", limit_s=plan.limit_s)
    if not found.exists():
        print(f"the device's bounds were not measured: {reason}", flush=True)
        return None
    return msgspec.json.decode(found.read_bytes(), type=Roofline)


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


def _prepare(runner: str, model: Model, plan: Plan) -> str | None:
    """Build the engines of a backend that runs engines; the reason where that fails."""
    flavour = None if runner.startswith("torch") else BACKENDS[runner].flavour
    if flavour is None:
        return None
    target = "rtx" if flavour == "tensorrt-rtx" else _server_target()
    print(f"{model.name}: building engines for {target} ...", flush=True)
    try:
        extra = ["--compute-capability", _capability()] if target == "rtx" else []
    except RuntimeError as error:  # of PyTorch, where the driver fails
        return f"PyTorch does not tell the GPU's compute capability: {error}"
    command = ["build", model.bundle, "--target", target, "--precision", "fp16", "--batch", "1,8,32", *extra]
    log = plan.scratch / f"{model.name}.build.{target}.log"
    reason = run_process([*EDGEVQA, *command], log=log, limit_s=plan.limit_s)
    return None if reason is None else f"building its engines failed: {reason}"


def _server_target() -> str:
    """The row of targets for the TensorRT that is installed."""
    major = BACKENDS["tensorrt"].version().partition(".")[0]
    return f"server-trt{major}" if f"server-trt{major}" in TARGETS else "server-trt11"


def _capability() -> str:
    return ".".join(str(part) for part in torch.cuda.get_device_capability())


def _reference(plan: Plan, bundle: Path | None, *, tiny: bool) -> Model:
    """The packaged model's bundle, with an FP16 variant unless it is only shown that everything runs."""
    path = bundle.resolve() if bundle is not None else plan.scratch / "reference.bundle"
    if not path.exists():
        _edgevqa(plan, "reference", "export", "reference", "-o", path, "--no-verify")
    if not tiny:
        _add_fp16(plan, "reference", path)
    return Model(name="reference", bundle=str(path), source=str(reference_folder()))


def _large(plan: Plan) -> Model:
    """CLIP ViT-L/14-336 with question fusion and Flan-T5-base: the published checkpoint's shape, random weights."""
    root, path = plan.scratch / "checkpoint", plan.scratch / "large.bundle"
    checkpoint, config = root / "ckpt.pth", root / "config.yaml"
    if not (root / "whole").exists():  # a run that was cut off may have left a part
        _step(plan, "large", "checkpoint", [*CHECKPOINT, root, "--clip", "large", "--t5", "base"])
        (root / "whole").touch()
    if not path.exists():
        words = ("export", checkpoint, "--config", config, "--root", root, "-o", path, "--no-verify")
        _edgevqa(plan, "large", *words)
    _add_fp16(plan, "large", path)
    return Model(name="large", bundle=str(path), source=str(checkpoint), config=str(config), root=str(root))


def _add_fp16(plan: Plan, model: str, bundle: Path) -> None:
    """Add the FP16 variant, unless it is there; casting wants to know how large the values get."""
    manifest = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    if "fp16" in manifest["variants"]:
        return
    try:
        if manifest.get("calibration") is None:
            _edgevqa(plan, model, "calibrate", bundle, "--data", CALIBRATED_WITH, "--samples", "128")
        _edgevqa(plan, model, "quantize", bundle, "--precision", "fp16")
    except PreparationError as error:  # PyTorch needs no variant; the others will say that it is missing
        print(f"no FP16 variant of {bundle.name}: {error}", flush=True)


def _edgevqa(plan: Plan, model: str, command: str, *words: str | Path) -> None:
    _step(plan, model, command, [*EDGEVQA, command, *words])


def _step(plan: Plan, model: str, name: str, command: list[str | Path]) -> None:
    """Run one step of making a model's bundle, to its end. Raises `PreparationError`."""
    print(f"{model}: {name} ...", flush=True)
    reason = run_process(command, log=plan.scratch / f"{model}.{name}.log", limit_s=plan.limit_s)
    if reason is not None:
        raise PreparationError(f"{name}: {reason}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the CPU and the reference model alone, few rounds")
    parser.add_argument("--bundle", type=Path, help="the reference model's bundle, where there is one already")
    parser.add_argument("--model", choices=("both", *MODELS), default="both")
    parser.add_argument("--runners", type=_runners, default=list(ON_GPU), help=f"some of {','.join(ON_GPU)}")
    parser.add_argument("--rounds", type=_count, default=30)
    parser.add_argument(
        "--batches", type=lambda text: [_count(part) for part in text.split(",")], default="1,2,4,8,16,32"
    )
    parser.add_argument("--samples", type=_count, default=512, help="questions whose answers are compared")
    parser.add_argument("--limit-s", type=_count, default=1800, help="what one process may take, in seconds")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.output is None:
        arguments.output = arguments.scratch / "gpu.json" if arguments.tiny else RESULT
    if arguments.tiny:
        arguments.model, arguments.rounds, arguments.batches, arguments.samples = "reference", 1, [1, 2], 2
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: two cores at most, and those may be busy
    return arguments


def _runners(text: str) -> list[str]:
    unknown = sorted(set(text.split(",")) - set(ON_GPU))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; expected some of {', '.join(ON_GPU)}")
    return [runner for runner in ON_GPU if runner in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
