"""`benchmarks/gpu.py` on a machine without a GPU: it runs to its end, and says what it could not run and why."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_it_runs_with_the_cpu_alone(reference_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--tiny", "--bundle", str(reference_bundle)]
    done = subprocess.run([*command, "-o", str(output)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(output.read_text())
    model = written["models"]["reference"]
    assert set(model["rows"]) == {"onnxruntime", "torch-eager"}
    assert set(model["not_run"]) >= {"ort-cuda", "ort-trt", "ort-rtx", "tensorrt", "tensorrt-rtx"}
    assert all(model["not_run"].values())
    assert model["rows"]["torch-eager"]["agreement"] == 1.0
    graphs = model["rows"]["onnxruntime"]["figures"]["graph_ms"]
    assert set(graphs) >= {"vision_trunk", "vision_fusion", "language_decoder"}
    assert set(model["rows"]["torch-eager"]["figures"]["answer_ms"]) == {"1", "2"}
    assert model["rows"]["onnxruntime"]["figures"]["decode_tokens_per_s"] > 0
    assert written["roofline"]["matmul_tflops"] > 0
    assert written["roofline"]["copy_gb_per_s"] > 0
    assert written["machine"]["telemetry"]
    assert written["bars_checked"] is False
    for runner in ("onnxruntime", "torch-eager", "ort-cuda not run: "):
        assert runner in done.stdout


def test_the_bars_can_fail() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.gpu_parts.figures import Figures, missed
        from edgevqa.runtime.benchmark import Spread
    finally:
        sys.path.remove(str(ROOT))

    def row(first_ms: float, **told: object) -> dict[str, object]:
        figures = Figures(
            runner="x",
            precision="fp16",
            answers=[],
            latency_ms={"first": Spread.of([first_ms])},
            tokens={},
            answer_ms={},
            graph_ms={},
        )
        return {"figures": figures, "precision": "fp16", "agreement": 1.0, "utilisation": {}, **told}

    full = {"vision_trunk": 0.6, "vision_fusion": 0.7}
    good = {"torch-eager": row(30.0), "tensorrt": row(9.0, utilisation=full)}
    assert missed({"large": {"rows": good}}) == []
    slow = {"torch-eager": row(30.0), "tensorrt": row(11.0, utilisation={**full, "vision_trunk": 0.5}, agreement=0.9)}
    assert [line.partition(":")[0] for line in missed({"large": {"rows": slow}})] == ["large", "large"]
    assert any("90.00%" in line for line in missed({"reference": {"rows": slow}}))
    assert missed({"large": {"rows": {"torch-eager": row(30.0)}}}) == ["large: no backend ran FP16 on the GPU"]


def test_a_decoder_step_is_timed_to_its_end() -> None:
    """A session on a GPU returns before the work is done: reading an output waits for it."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.gpu_parts.backends import decoder_ms
        from edgevqa.runtime.counters import Statistics
        from edgevqa.runtime.graphs import Graphs
    finally:
        sys.path.remove(str(ROOT))

    class Late:
        shape = (1, 2)

        def numpy(self) -> None:
            time.sleep(0.02)

    class Eager:
        inputs: tuple[()] = ()

        def run(self, inputs: object) -> dict[str, Late]:
            return {"logits": Late()}

    session: Any = Eager()
    graphs = Graphs({"language_decoder": session}, Statistics())

    def answer(picture: object, question: str) -> None:
        graphs.run("language_decoder", {})

    pipeline: Any = SimpleNamespace(
        graphs=graphs, statistics=graphs.statistics, manifest=SimpleNamespace(image=None), answer=answer
    )
    assert 20 <= decoder_ms(pipeline, 3) < 1000
    assert graphs.statistics.history is None
    started = time.perf_counter()
    answer(None, "")
    assert time.perf_counter() - started < 0.02, "answers themselves do not wait"


@pytest.mark.gpu
def test_it_runs_on_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA GPU here")
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "-o", str(tmp_path / "gpu.json")]
    done = subprocess.run([*command, "--rounds", "3", "--samples", "16", "--batches", "1,8"], cwd=ROOT, check=False)
    assert done.returncode in (0, 1)  # a bar may fail; what is measured must be written
    assert json.loads((tmp_path / "gpu.json").read_text())["bars_checked"] is True
