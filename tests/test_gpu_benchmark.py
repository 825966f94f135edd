"""`benchmarks/gpu.py` on a machine without a GPU: it runs to its end, and its figures, table and bars are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.export.sources import reference_folder
from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.graphs import Graphs

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
try:
    from benchmarks.gpu_parts import backends, eager
    from benchmarks.gpu_parts.backends import decoder_ms
    from benchmarks.gpu_parts.figures import (
        Figures,
        Model,
        Roofline,
        Task,
        agreement,
        missed,
        utilisation,
        vision_flops,
    )
    from benchmarks.gpu_parts.table import table
finally:
    sys.path.remove(str(ROOT))

ROOFLINE = Roofline(device="a GPU", dtype="float16", matmul_size=8192, matmul_tflops=700.0, copy_gb_per_s=4000.0)


def figures(**told: Any) -> Figures:
    empty: dict[str, Any] = {"answers": [], "latency_ms": {}, "tokens": {}, "answer_ms": {}, "graph_ms": {}}
    given: dict[str, Any] = {"runner": "x", "precision": "fp16", **empty, **told}
    return Figures(**given)


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
    assert written["complete"] is True
    for row in model["rows"].values():
        assert row["figures"]["process_mb"] > 100, "the process's peak"
        assert set(row["figures"]["latency_ms"]) == {"first", "next"}
        assert set(row["figures"]["latency_ms"]["first"]) >= {"p50", "p90", "p99"}
    for runner in ("onnxruntime", "torch-eager", "ort-cuda not run: "):
        assert runner in done.stdout


def test_the_bars_can_fail() -> None:
    def row(first_ms: float, **told: object) -> dict[str, object]:
        spread = Spread.of([first_ms])
        given = {"precision": "fp16", "agreement": 1.0, "utilisation": {}, **told}
        return {"figures": figures(latency_ms={"first": spread}), **given}

    full = {"vision_trunk": 0.6, "vision_fusion": 0.7}
    good = {"torch-eager": row(30.0), "tensorrt": row(9.0, utilisation=full)}
    assert missed({"large": {"rows": good}}) == []
    slow = {"torch-eager": row(30.0), "tensorrt": row(11.0, utilisation={**full, "vision_trunk": 0.5}, agreement=0.9)}
    assert [line.partition(":")[0] for line in missed({"large": {"rows": slow}})] == ["large", "large"]
    assert any("90.00%" in line for line in missed({"reference": {"rows": slow}}))
    assert missed({"large": {"rows": {"torch-eager": row(30.0)}}}) == ["large: no backend ran FP16 on the GPU"]
    alone = {"torch-eager": row(30.0), "tensorrt": row(9.0, agreement=None)}
    assert missed({"reference": {"rows": alone}}) == ["reference: tensorrt was not compared with the float bundle"]


def test_agreement_is_the_share_of_equal_answers() -> None:
    answers = ["red", "yes", "a circle", ""]
    assert agreement(figures(answers=answers), list(answers)) == 1.0
    assert agreement(figures(answers=answers), ["red", "no", "a circle", ""]) == 0.75
    assert agreement(figures(answers=answers), ["Red", "no", "circle", "-"]) == 0.0
    assert agreement(figures(answers=answers), []) is None, "the float bundle did not run"
    with pytest.raises(ValueError, match="zip"):
        agreement(figures(answers=answers), ["red"])


def test_utilisation_is_the_rate_at_batch_8_of_the_measured_one(reference_bundle: Path) -> None:
    bundle = Bundle.open(reference_bundle)
    model = Model(name="reference", bundle=str(reference_bundle), source="reference")
    operations = {name: vision_flops(bundle, "fp32", name, 12) for name in ("vision_trunk", "vision_fusion")}
    for name, count in operations.items():
        spec = bundle.graph("fp32", name)
        tokens = spec.outputs[0].shape[1]
        assert isinstance(tokens, int)
        assert 2 * spec.parameters * tokens < count < 3 * spec.parameters * tokens, "and some for attention"
    # at this rate the trunk takes 4 ms for 8 rows at the device's best
    bounds = msgspec.structs.replace(ROOFLINE, matmul_tflops=operations["vision_trunk"] * 8 / 4e-3 / 1e12)
    timed = {
        "vision_trunk": {1: Spread.of([1.0]), 8: Spread.of([8.0, 8.0, 100.0])},
        "vision_fusion": {1: Spread.of([1.0])},
        "projector": {8: Spread.of([1.0])},
    }
    found = utilisation(figures(graph_ms=timed), model, bounds, 12)
    assert found == {"vision_trunk": pytest.approx(0.5)}, "at batch 8, by the median"
    assert utilisation(figures(graph_ms=timed), model, None, 12) == {}


def test_the_table_has_every_figure() -> None:
    times = [float(number) for number in range(1, 101)]
    row = {
        "figures": figures(
            latency_ms={"first": Spread.of(times), "next": Spread.of([2 * time for time in times])},
            answer_ms={batch: Spread.of([float(batch) * 4]) for batch in (1, 8)},
            graph_ms={"vision_trunk": {1: Spread.of(times), 8: Spread.of([7.0])}},
            decode_tokens_per_s=1234.4,
            process_mb=2345.6,
            gpu_mb=3456.7,
            joules_per_answer=0.4567,
            not_run={"batch 32": "the engine takes 1 to 8"},
        ),
        "precision": "fp16",
        "agreement": 0.9987,
        "utilisation": {"vision_trunk": 0.4, "vision_fusion": 0.612},
    }
    empty = {"figures": figures(), "precision": "fp16", "agreement": None, "utilisation": {}}
    results = {"large": {"rows": {"tensorrt": row, "ort-cuda": empty}, "not_run": {"ort-trt": "its process crashed"}}}
    bounds, *lines = table(results, ROOFLINE, (1, 8, 32))
    assert "700 TFLOP/s" in bounds
    assert "4,000 GB/s" in bounds
    heads, first, second = (split(line) for line in lines[:3])
    assert dict(zip(heads, first, strict=True)) == {
        "model": "large",
        "runner": "tensorrt",
        "precision": "fp16",
        "first ms p50": "50.50",
        "first ms p90": "90.10",
        "first ms p99": "99.01",
        "next ms p50": "101.00",
        "next ms p90": "180.20",
        "next ms p99": "198.02",
        "tokens/s": "1234",
        "b1 answers/s": "250.0",
        "b8 answers/s": "250.0",
        "b32 answers/s": "-",
        "RAM MB": "2,346",
        "GPU MB": "3,457",
        "J/answer": "0.457",
        "vision": "61.2%",
        "agree": "99.87%",
    }
    assert second[3:] == ["-"] * (len(heads) - 3)
    graph = dict(zip(split(lines[4]), split(lines[5]), strict=True))
    assert graph["graph"] == "vision_trunk"
    assert [graph[f"b1 ms {name}"] for name in ("p50", "p90", "p99")] == ["50.50", "90.10", "99.01"]
    assert graph["b8 ms p50"] == "7.00"
    assert graph["b32 ms p99"] == "-"
    assert lines[-2:] == [
        "large: ort-trt not run: its process crashed",
        "large: tensorrt, batch 32: the engine takes 1 to 8",
    ]
    assert "not measured" in table(results, None, (1,))[0]


def split(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


class Meter:
    """An energy meter that counts six joules between one reading and the next."""

    sensors = ("a GPU",)

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.read = 0

    def open(self, *, gpu: bool) -> Meter:
        self.asked.append(gpu)
        return self

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def joules(self) -> float:
        self.read += 1
        return 6.0 * self.read


@pytest.mark.parametrize("runner", ["onnxruntime", "torch-eager"])
def test_energy_and_memory_are_measured_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, reference_bundle: Path, runner: str
) -> None:
    module: Any = eager if runner == "torch-eager" else backends
    measure = eager.measure_torch if runner == "torch-eager" else backends.measure_backend
    meter, used = Meter(), iter([100.0, 350.0])
    monkeypatch.setattr(module, "EnergyMeter", meter)
    model = Model(name="reference", bundle=str(reference_bundle), source=str(reference_folder()))
    task = Task(runner=runner, model=model, precision="fp32", rounds=1, batches=(1,), samples=2, device="cpu")
    samples = list(islice(open_dataset("scenes:7:2"), 2))
    found = measure(task, samples, gpu_memory=lambda: next(used))
    assert found.joules_per_answer == 3.0, "two answers"
    assert list(found.energy_sensors) == ["a GPU"]
    assert meter.asked == [False]
    assert found.gpu_mb == 250.0
    assert found.process_mb is not None
    assert found.process_mb > 100
    assert found.load_s is not None
    assert found.load_s > 0
    assert set(found.latency_ms) == {"first", "next"}
    assert set(found.graph_ms) >= {"vision_trunk", "vision_fusion"}


def test_batches_that_are_too_large_for_the_gpu_are_left_out(
    monkeypatch: pytest.MonkeyPatch, reference_bundle: Path
) -> None:
    own = eager.TorchAnswers.answer

    def answer(self: eager.TorchAnswers, pictures: Any, questions: Any) -> list[str]:
        if len(pictures) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand more")
        return own(self, pictures, questions)

    monkeypatch.setattr(eager.TorchAnswers, "answer", answer)
    model = Model(name="reference", bundle=str(reference_bundle), source=str(reference_folder()))
    task = Task(runner="torch-eager", model=model, precision="fp32", rounds=1, batches=(1, 2), samples=1, device="cpu")
    found = eager.measure_torch(task, list(open_dataset("scenes:7:1")), gpu_memory=lambda: None)
    assert list(found.answer_ms) == [1]
    assert found.not_run == {"batch 2": "CUDA out of memory. Tried to allocate 20 GiB"}
    assert list(found.graph_ms["vision_trunk"]) == [1, 2]


def test_a_decoder_step_is_timed_to_its_end() -> None:
    """A session on a GPU returns before the work is done: reading an output waits for it."""

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
