"""The other side: exports made in processes of their own, and their graphs in ONNX Runtime with our sessions' options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from benchmarks.exporters.bundles import Array

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The files that an export wrote, by name, or the first line of its error."""

    graphs: dict[str, str] = {}
    error: str | None = None
    seconds: float = 0.0


def export_with(command: Sequence[str | Path], output: Path) -> Outcome:
    """Run a worker that writes graphs into `output`; what an earlier run left there is taken as it is."""
    told = output.with_name(f"{output.name}.json")
    if not told.exists():
        told.write_bytes(msgspec.json.encode(_run(command, output)))
    return msgspec.json.decode(told.read_bytes(), type=Outcome)


def _run(command: Sequence[str | Path], output: Path) -> Outcome:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=output,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Outcome(error=f"not ready after {LIMIT_S} s", seconds=LIMIT_S)
    seconds = round(time.perf_counter() - start, 1)
    files = {str(file.relative_to(output).with_suffix("")): str(file) for file in sorted(output.rglob("*.onnx"))}
    if done.returncode or not files:
        return Outcome(error=reason_of(done.stderr) or f"exit code {done.returncode}", seconds=seconds)
    return Outcome(graphs=files, seconds=seconds)


def transformers_command(subject: str, folder: Path, output: Path, what: str) -> list[str | Path]:
    """Of the worker that runs transformers.exporters in this environment."""
    return [sys.executable, "-m", "benchmarks.exporters.transformers_worker", subject, folder, output, what]


def optimum_command(python: Path, folder: Path, output: Path, task: str) -> list[str | Path]:
    """Of the worker that runs optimum-onnx in its own environment."""
    return [python, ROOT / "benchmarks" / "exporters" / "optimum_worker.py", folder, output, task]


def reason_of(stderr: str) -> str:
    """What the last traceback says: the first line of its exception's text; causes are told by the one they led to."""
    lines = stderr.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else lines[-1:]
    said = next((line for line in after if line and not line.startswith(" ")), "")
    return said[:300]


class PeerGraph:
    """One graph of another exporter in ONNX Runtime as its users have it, with one thread."""

    def __init__(self, path: Path) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        self.path = path
        self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self._session.get_inputs()}
        self.outputs = [each.name for each in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run with those inputs that the graph takes."""
        values: dict[str, Array] = {
            name: np.ascontiguousarray(inputs[name], dtype=_TYPES[spec.type]) for name, spec in self.inputs.items()
        }
        return dict(zip(self.outputs, self._session.run(self.outputs, values), strict=True))


def host(value: Any) -> Array:
    """An OrtValue's or a tensor's array."""
    return np.array(value if isinstance(value, np.ndarray) else value.numpy())


def size_bytes(files: Sequence[Path]) -> int:
    """Bytes of graphs and the weights beside them."""
    beside = {each for file in files for each in file.parent.glob("*") if each.name.startswith(f"{file.name}")}
    return sum(file.stat().st_size for file in beside)


def node_count(files: Sequence[Path]) -> int:
    """Nodes of graphs."""
    return sum(len(onnx.load(file, load_external_data=False).graph.node) for file in files)
