"""`benchmarks/gpu.py` on a GPU machine that is played: what crashes, hangs or is cut off loses itself alone."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import gpu
    from benchmarks.gpu_parts import processes, worker
    from benchmarks.gpu_parts.figures import Model, Roofline, Task
    from benchmarks.gpu_parts.table import table
finally:
    sys.path.remove(str(ROOT))

NAMES = ("torch-eager", "torch-compile", "ort-cuda", "ort-trt", "ort-rtx", "tensorrt", "tensorrt-rtx")
ROOFLINE = Roofline(device="a GPU", dtype="float16", matmul_size=8192, matmul_tflops=700.0, copy_gb_per_s=4000.0)
WORKER = """
import json, os, shutil, subprocess, sys, time
task, output, ways, root = json.load(open(sys.argv[1])), sys.argv[2], json.loads(WAYS), ROOT
way = ways.get(task["runner"], "")
if way.startswith("hang"):
    if way == "hang with a child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(os.path.join(root, "child"), "w").write(str(child.pid))
    print("I am about to hang", flush=True)
    time.sleep(600)
if way == "look":
    shutil.copy(os.path.join(root, "gpu.json"), os.path.join(root, "seen.json"))
if way == "crash":
    print("I am about to crash", flush=True)
    os.kill(os.getpid(), 11)
if way == "fail":
    print("a trace\\nValueError: no such thing\\n")
    sys.exit(1)
if way == "unavailable":
    print("no driver was found")
    sys.exit(3)
if way == "silent":
    sys.exit(5)
if way != "no figures":
    answers = ["red", "no" if task["runner"] == "ort-cuda" else "yes"]
    figures = dict(runner=task["runner"], precision="x", answers=answers, latency_ms={}, tokens={}, answer_ms={}, graph_ms={})
    open(output, "w").write(json.dumps(figures))
if way == "crash after":
    os.kill(os.getpid(), 11)
"""


def fake_command(folder: Path, program: str) -> tuple[str, ...]:
    """A program in place of one of the benchmark's processes."""
    file = folder / f"program{len(list(folder.glob('program*')))}.py"
    file.write_text(program)
    return (sys.executable, str(file))


def fake_runners(patch: pytest.MonkeyPatch, folder: Path, **ways: str) -> None:
    """Stand-ins for what a GPU machine runs: processes that end in the ways that are named, or with figures."""
    program = WORKER.replace("WAYS", repr(json.dumps(ways))).replace("ROOT", repr(str(folder)))
    told = json.dumps(msgspec.to_builtins(ROOFLINE))
    patch.setattr(gpu, "WORKER", fake_command(folder, program))
    patch.setattr(gpu, "ROOFLINE", fake_command(folder, f"import sys; open(sys.argv[2], 'w').write({told!r})"))
    patch.setattr(gpu, "EDGEVQA", fake_command(folder, "print('built')"))
    patch.setattr(gpu, "_cannot", lambda runner, device: None)
    patch.setattr(gpu, "_capability", lambda: "9.0")
    patch.setattr(gpu, "_server_target", lambda: "server-trt11")
    patch.setattr(
        gpu, "utilisation", lambda figures, model, roofline, words: {} if roofline is None else {"vision": 1.0}
    )


def plan_of(folder: Path, runners: tuple[str, ...], limit_s: float = 60) -> gpu.Plan:
    batches = (1, 2, 4, 8, 16, 32)
    return gpu.Plan(
        device="cuda", scratch=folder, runners=runners, batches=batches, rounds=3, samples=2, limit_s=limit_s
    )


def model_of(name: str) -> Model:
    return Model(name=name, bundle="a bundle", source="a checkpoint")


def measured(folder: Path, runners: tuple[str, ...], limit_s: float = 60) -> gpu.Report:
    report = gpu.Report(folder / "gpu.json", plan_of(folder, runners, limit_s), ["reference"])
    gpu.measure(report, {"reference": lambda: model_of("reference")})
    return report


def test_all_runners_are_tried_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the issue: PyTorch twice, ONNX Runtime's providers, and engines of both kinds; the float bundle first."""
    fake_runners(monkeypatch, tmp_path)
    report = measured(tmp_path, NAMES)
    result = report.results["reference"]
    assert list(result["rows"]) == ["onnxruntime", *NAMES]
    assert result["not_run"] == {}
    tasks = {name: json.loads((tmp_path / f"reference.{name}.task.json").read_text()) for name in result["rows"]}
    assert {name: task["precision"] for name, task in tasks.items()} == {
        "onnxruntime": "fp32",
        **dict.fromkeys(NAMES, "fp16"),
    }
    assert tasks["onnxruntime"]["device"] == "cpu"
    assert tasks["tensorrt"]["batches"] == [1, 2, 4, 8, 16, 32]
    others = {name: row["agreement"] for name, row in result["rows"].items() if row["agreement"] != 1.0}
    assert others == {"ort-cuda": 0.5}, "its second answer is another"
    assert {name: row["utilisation"] for name, row in result["rows"].items()} == {
        "onnxruntime": {},
        **{name: {"vision": 1.0} for name in NAMES},
    }
    assert gpu.ON_GPU == NAMES
    builds = sorted(file.name for file in tmp_path.glob("*.build.*.log"))
    assert builds == ["reference.build.rtx.log", "reference.build.server-trt11.log"]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (
            "crash",
            r"its process was ended by SIGSEGV; it last said: I am about to crash \(more in reference\.ort-trt\.log\)",
        ),
        ("hang", r"it was stopped after 5 s \(--limit-s\); it last said: I am about to hang"),
        ("fail", r"its process ended with exit code 1; it last said: ValueError: no such thing"),
        ("unavailable", r"^no driver was found$"),
        ("silent", r"its process ended with exit code 5, and said nothing"),
        ("no figures", r"its process wrote no figures"),
    ],
)
def test_a_runner_that_breaks_loses_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, said: str
) -> None:
    fake_runners(monkeypatch, tmp_path, **{"ort-trt": way})
    names = ("torch-eager", "ort-trt", "tensorrt")
    started = time.monotonic()
    report = measured(tmp_path, names, 5 if way == "hang" else 60)
    assert time.monotonic() - started < 60
    result = report.results["reference"]
    assert list(result["rows"]) == ["onnxruntime", "torch-eager", "tensorrt"]
    assert list(result["not_run"]) == ["ort-trt"]
    assert re.search(said, result["not_run"]["ort-trt"])
    assert any("reference: ort-trt not run: " in line for line in table(report.results, None, (1,)))
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert re.search(said, written["models"]["reference"]["not_run"]["ort-trt"])


def test_figures_of_a_process_that_crashes_on_its_way_out_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runners(monkeypatch, tmp_path, **{"ort-trt": "crash after"})
    result = measured(tmp_path, ("ort-trt",)).results["reference"]
    assert "SIGSEGV" in result["rows"]["ort-trt"]["figures"].not_run["after measuring"]
    assert result["not_run"] == {}


def test_a_hanging_runners_own_processes_are_ended_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compilers are processes of their own; they would hold the GPU."""
    fake_runners(monkeypatch, tmp_path, **{"ort-trt": "hang with a child"})
    measured(tmp_path, ("ort-trt",), 5)
    state = Path(f"/proc/{int((tmp_path / 'child').read_text())}/stat")
    last = time.monotonic() + 5
    while (
        lives := state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    ) and time.monotonic() < last:
        time.sleep(0.05)
    assert not lives


def test_what_there_is_is_written_while_a_runner_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a run that is killed leaves it, and says how far it came."""
    fake_runners(monkeypatch, tmp_path, tensorrt="look")
    measured(tmp_path, ("torch-eager", "tensorrt", "tensorrt-rtx"))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert (seen["complete"], seen["bars_checked"], seen["failed"]) == (False, False, [])
    assert seen["roofline"]["matmul_tflops"] == 700
    result = seen["models"]["reference"]
    assert list(result["rows"]) == ["onnxruntime", "torch-eager"]
    assert result["not_run"] == {
        "tensorrt": "the run ended while it was measured",
        "tensorrt-rtx": "the run ended before it",
    }


def test_a_bundle_that_cannot_be_made_does_not_stop_the_next_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runners(monkeypatch, tmp_path)
    plan = plan_of(tmp_path, ("torch-eager",))
    report = gpu.Report(tmp_path / "gpu.json", plan, ["reference", "large"])

    def fails() -> Model:
        gpu._edgevqa(plan, "reference", "export", "a-model-that-is-absent", "-o", tmp_path / "x")
        return model_of("reference")

    monkeypatch.setattr(
        gpu, "EDGEVQA", fake_command(tmp_path, "import sys; print('Export failed: no such model'); sys.exit(4)")
    )
    gpu.measure(report, {"reference": fails, "large": lambda: model_of("large")})
    assert set(report.results["reference"]["not_run"]) == {"onnxruntime", "torch-eager"}
    assert "export: its process ended with exit code 4; it last said: Export failed" in next(
        iter(report.results["reference"]["not_run"].values())
    )
    assert list(report.results["large"]["rows"]) == ["onnxruntime", "torch-eager"]


COMMAND = """
import json, sys
from pathlib import Path
print("made by", sys.argv[1:])
if sys.argv[1] == "export":
    folder = Path(sys.argv[sys.argv.index("-o") + 1])
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"variants": {}}))
"""


def test_each_model_is_made_by_processes_with_logs_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Writing the large checkpoint takes gigabytes, which would stay in the benchmark's own process."""
    monkeypatch.setattr(gpu, "EDGEVQA", fake_command(tmp_path, COMMAND))
    monkeypatch.setattr(gpu, "CHECKPOINT", fake_command(tmp_path, COMMAND))
    plan = plan_of(tmp_path, ())
    (tmp_path / "checkpoint").mkdir()
    assert gpu._reference(plan, None, tiny=False).bundle == str(tmp_path / "reference.bundle")
    assert gpu._large(plan).bundle == str(tmp_path / "large.bundle")
    logs = {file.name: file.read_text() for file in tmp_path.glob("*.log")}
    steps = [f"{name}.{step}.log" for name in gpu.MODELS for step in ("calibrate", "export", "quantize")]
    assert sorted(logs) == sorted([*steps, "large.checkpoint.log"])
    assert "'--clip', 'large', '--t5', 'base'" in logs["large.checkpoint.log"]
    assert "large.bundle" in logs["large.export.log"]
    assert "reference.bundle" in logs["reference.export.log"]


def test_a_checkpoint_that_cannot_be_written_is_not_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "CHECKPOINT", fake_command(tmp_path, "import sys; print('no space'); sys.exit(1)"))
    with pytest.raises(gpu.PreparationError, match="checkpoint: its process ended with exit code 1; it last said: no"):
        gpu._large(plan_of(tmp_path, ()))
    assert not (tmp_path / "checkpoint").exists()


def test_engines_that_cannot_be_built_are_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runners(monkeypatch, tmp_path)
    monkeypatch.setattr(gpu, "EDGEVQA", fake_command(tmp_path, "import sys; print('TensorRT is too old'); sys.exit(4)"))
    result = measured(tmp_path, ("tensorrt", "torch-eager")).results["reference"]
    assert (
        "building its engines failed: its process ended with exit code 4; it last said: TensorRT is too"
        in (result["not_run"]["tensorrt"])
    )
    assert list(result["rows"]) == ["onnxruntime", "torch-eager"]


def test_without_the_devices_bounds_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runners(monkeypatch, tmp_path)
    monkeypatch.setattr(gpu, "ROOFLINE", fake_command(tmp_path, "import os; os.kill(os.getpid(), 11)"))
    report = measured(tmp_path, ("torch-eager",))
    assert report.roofline is None
    assert report.results["reference"]["rows"]["torch-eager"]["utilisation"] == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--runners", "torch-eager,tensorflow"], "tensorflow; expected some of torch-eager, torch-compile"),
        (["--batches", "1,0"], "'0'; expected a whole number of at least 1"),
        (["--samples", "0"], "expected a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "scratch", *given])
    with pytest.raises(SystemExit):
        gpu._arguments()
    assert said in capsys.readouterr().err


def test_a_workers_last_line_is_the_error_and_not_its_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What PyTorch's compiler raises ends with lines of advice."""

    def fails(task: Task, output: Path) -> None:
        raise RuntimeError("\nFailed to find C compiler.\n\nSet TORCHDYNAMO_VERBOSE=1 for the trace\n")

    model = Model(name="reference", bundle="x", source="x")
    given = Task(
        runner="torch-compile", model=model, precision="fp16", rounds=1, batches=(1,), samples=1, device="cuda"
    )
    (tmp_path / "task.json").write_bytes(msgspec.json.encode(given))
    monkeypatch.setattr(worker, "_measure", fails)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "task.json"), str(tmp_path / "figures.json")])
    with pytest.raises(SystemExit, match="1"):
        worker.main()
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "RuntimeError: Failed to find C compiler."
    assert "Traceback" in told.err


def test_what_a_worker_lacks_is_told(tmp_path: Path) -> None:
    task, output = tmp_path / "task.json", tmp_path / "figures.json"
    model = Model(name="reference", bundle=str(tmp_path / "absent"), source="absent")
    given = Task(runner="torch-eager", model=model, precision="fp32", rounds=1, batches=(1,), samples=1, device="cpu")
    for runner, said in (("torch-eager", "absent"), ("onnxruntime", "absent"), ("tpu", "Unknown backend 'tpu'")):
        task.write_bytes(msgspec.json.encode(msgspec.structs.replace(given, runner=runner)))
        reason = processes.run_process([*gpu.WORKER, task, output], log=tmp_path / "log", limit_s=120)
        assert reason is not None
        assert said in reason
    assert not output.exists()
