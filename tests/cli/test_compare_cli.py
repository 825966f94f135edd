"""`edgevqa compare` and `edgevqa evaluate`: what they print and write, their exit codes, and Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.evaluation import comparing
from edgevqa.evaluation.children import RowResult
from edgevqa.evaluation.protocol import Energy, Measured, Task
from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import EdgeVQAError, InputError, UnavailableError

Invoke = Callable[..., tuple[int, str, str]]
QUICK = ("--data", "scenes:7:8", "--latency-runs", "1")
ORT = ("--backends", "onnxruntime")


def test_compare_writes_a_table_json_csv_and_a_page(invoke: Invoke, two_precisions: Path, tmp_path: Path) -> None:
    page, table = tmp_path / "report.html", tmp_path / "rows.csv"
    code, out, err = invoke("compare", two_precisions, *QUICK, *ORT, "--report", page, "--csv", table, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["variant"] for row in rows] == ["fp32", "int8-u8-fp32"]
    assert "2/2 int8-u8-fp32 on onnxruntime, answering" in err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with table.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["variant"] for line in lines] == ["fp32", "int8-u8-fp32"]
    assert float(lines[1]["latency_ms.next.p50"]) == rows[1]["latency_ms"]["next"]["p50"]
    assert float(lines[0]["accuracy"]) == rows[0]["accuracy"]


def test_a_condition_that_holds_fails_with_both_values(invoke: Invoke, two_precisions: Path) -> None:
    conditions = ("--fail-if", "int8.accuracy <= fp32.accuracy + 100", "--fail-if", "int8.size_mb < 0")
    code, out, err = invoke("compare", two_precisions, *QUICK, *ORT, *conditions)
    assert code == 1
    assert "int8-u8-fp32" in out
    assert "same answers" in out
    [line] = [line for line in err.splitlines() if "--fail-if" in line]
    assert '"int8.accuracy <= fp32.accuracy + 100" holds' in line
    assert "int8.accuracy = " in line
    assert "fp32.accuracy = " in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--fail-if", "int9.accuracy < 1"), "Rows: fp32, int8, int8-u8-fp32"),
        (("--fail-if", "int8.speed < 1"), "no figure 'speed'"),
        (("--fail-if", "int8.accuracy"), "not a condition"),
        (("--precisions", "fp32,mixed"), "--precision mixed --data DATA\n"),
        (("--precisions", "fp8"), "--precision fp8 --data DATA --target T (T: jetson-thor-jp7, "),
        (("--precisions", "fp32,,int8"), "--precisions is 'fp32,,int8'"),
        (("--samples", "0"), "samples is 0"),
        (("--latency-runs", "-1"), "latency_runs is -1"),
        (("--report", "/"), "is a folder"),
        (("--csv", "/"), "is a folder"),
        (("--csv", "/proc/nowhere/rows.csv"), "/proc/nowhere/rows.csv cannot be written"),
        (("--report", "/proc/nowhere/page.html"), "/proc/nowhere/page.html cannot be written"),
    ],
)
def test_mistakes_are_told_at_once(invoke: Invoke, two_precisions: Path, arguments: tuple[str, ...], told: str) -> None:
    start = time.perf_counter()
    code, out, err = invoke("compare", two_precisions, *QUICK, *ORT, *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert "answering" not in err
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("fp32", "fp16", "code"),
    [
        (UnavailableError("no GPU"), UnavailableError("no GPU"), 3),
        (UnavailableError("no GPU"), EdgeVQAError("it broke"), 70),
        (InputError("no engines"), UnavailableError("no GPU"), 2),
        (None, UnavailableError("no GPU"), 3),
        (None, EdgeVQAError("it broke"), 70),
    ],
)
def test_the_exit_code_is_that_of_what_rows_failed_of(
    invoke: Invoke,
    fake_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    fp32: EdgeVQAError | None,
    fp16: EdgeVQAError,
    code: int,
) -> None:
    spread = Spread(p50=1, p90=1, p99=1, lowest=1, highest=1)

    def answer(task: Task, label: str, advance: object) -> tuple[RowResult, Measured]:
        failure = fp32 if task.options["precision"] == "fp32" else fp16
        if failure is not None:
            raise failure
        measured = Measured(
            load_ms=1,
            answering_s=1,
            latency_ms={"first": spread, "next": spread},
            per_graph_ms={},
            latency_runs=1,
            peak_memory_mb=None,
            energy=Energy(joules=None, sensors=[], missing="no sensor"),
        )
        return RowResult(texts=["red"] * 8, confidences=[1.0] * 8, measured=measured), measured

    monkeypatch.setattr(comparing, "run_task", answer)
    found, out, err = invoke("compare", fake_bundle.root, *QUICK, *ORT, "--json")
    assert found == code, err
    assert str(fp16) in err
    assert ("No row could be measured" in err) is (fp32 is not None)
    if fp32 is None:
        assert json.loads(out)["failed"][0]["exit_code"] == code


def test_evaluate_prints_json_and_writes_answers(invoke: Invoke, two_precisions: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    line = ("evaluate", two_precisions, *QUICK, "--backend", "onnxruntime", "--samples", "5", "--seed", "3")
    code, out, err = invoke(*line, "--json", "--output", answers)
    assert code == 0, err
    [row] = json.loads(out)["rows"]
    assert (row["n"], row["precision"], row["agreement"]) == (5, "fp32", 100.0)
    records = [json.loads(text) for text in answers.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 5
    assert all(record["prediction"] for record in records)
    right = sum(record["prediction"] in record["answers"] for record in records)
    assert row["exact_match"] == pytest.approx(100 * right / 5)


def test_evaluate_prints_a_table(invoke: Invoke, two_precisions: Path) -> None:
    code, out, err = invoke("evaluate", two_precisions, *QUICK, "--precision", "int8", "--backend", "onnxruntime")
    assert code == 0, err
    for text in ("95% interval", "agreement", "peak memory", "language_decoder", "first answer", "kind of question"):
        assert text in out


def test_evaluate_without_that_precision(invoke: Invoke, two_precisions: Path) -> None:
    code, out, err = invoke("evaluate", two_precisions, *QUICK, "--precision", "fp16")
    assert (code, out) == (2, "")
    assert f"edgevqa quantize {two_precisions} --precision fp16" in err


def workers(parent: int) -> list[int]:
    """Living children of a process."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def test_an_interrupt_ends_the_measuring_process_too(two_precisions: Path) -> None:
    line = [sys.executable, "-m", "edgevqa.cli.main", "compare", str(two_precisions), *ORT, "--data", "scenes:7:4000"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for told in process.stderr:
        if "answering" in told:
            break
    [worker] = workers(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
