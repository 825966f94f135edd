"""What a build says of a process that died, and of the time it will take; no TensorRT is needed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevqa.export.engine import process
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.process import run_job
from edgevqa.export.engine.progress import TimeLeft
from edgevqa.export.engine.protocol import Job, Phase
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError

SLEEPS = ("-c", "import time; time.sleep(60)")


def job(**changes: Any) -> Job:
    given: dict[str, Any] = {"target": "rtx", **changes}
    return Job(
        graph="language_decoder",
        onnx="x.onnx",
        engine="x.engine",
        profiles=[],
        options=BuildOptions(**given),
        half=True,
        numerics="fp16",
        timing_cache=None,
    )


def death(monkeypatch: pytest.MonkeyPatch, made: Job, number: int, free: float | None) -> str:
    """What is said of a process that was ended by a signal while so much memory was free."""
    monkeypatch.setattr(process, "_CHILD", SLEEPS)
    monkeypatch.setattr(process, "free_mb", lambda: free)

    def kill(phase: Phase, resident: float) -> None:
        text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii")
        for pid in text.split():
            os.kill(int(pid), number)

    with pytest.raises(EdgeVQAError) as caught:
        run_job(made, kill)
    return str(caught.value)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="it finds the child in /proc")


@needs_proc
def test_a_killed_process_is_not_said_to_lack_memory_where_there_was_some(monkeypatch: pytest.MonkeyPatch) -> None:
    said = death(monkeypatch, job(), signal.SIGKILL, 23_000.0)
    assert "built graph 'language_decoder' was ended by SIGKILL at " in said
    assert "with 23,000 MB of memory free" in said
    assert "hardly for want of memory" in said
    assert "--memory-budget" not in said
    assert "--batch" not in said
    assert "Run the command again" in said


@needs_proc
@pytest.mark.parametrize("free", [300.0, None])
def test_a_killed_process_is_said_to_lack_memory_where_little_was_free(
    monkeypatch: pytest.MonkeyPatch, free: float | None
) -> None:
    said = death(monkeypatch, job(), signal.SIGKILL, free)
    assert "Most likely the memory did not suffice. Build the int8 variant" in said
    assert "fp16" not in said, "it is what was built"
    assert "--memory-budget" not in said, "none was given"
    assert "raise --memory-budget" in death(monkeypatch, job(memory_budget_bytes=10**12), signal.SIGKILL, free)


@needs_proc
def test_a_fault_names_its_signal_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said = death(monkeypatch, job(), signal.SIGSEGV, 23_000.0)
    assert "was ended by SIGSEGV at " in said
    assert "--optimization-level" in said
    assert "code -11" not in said


@needs_proc
def test_over_the_budget_the_same_precision_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_CHILD", SLEEPS)
    with pytest.raises(
        CheckFailed, match=r"the budget is 0 MB\. Build the int8 variant \(--precision\), build for fewer"
    ):
        run_job(job(), lambda phase, resident: None, memory_budget_bytes=1)


def phase(done: int, total: int = 100) -> Phase:
    return Phase(name="tactics", done=done, total=total)


def test_the_time_left_is_told_where_there_is_a_pace() -> None:
    left = TimeLeft()
    assert left.tell(Phase(name="starting", done=0, total=0), 0.0) == "starting"
    assert left.tell(phase(0), 1.0) == "tactics 0 of 100 (0%)"
    assert left.tell(phase(1), 2.0) == "tactics 1 of 100 (1%)", "one step is no pace"
    assert left.tell(phase(10), 11.0) == "tactics 10 of 100 (10%), about 90 s left"


def test_the_time_left_counts_down_between_steps_and_is_left_out_when_it_is_used_up() -> None:
    left = TimeLeft()
    left.tell(phase(0), 0.0)
    left.tell(phase(98), 49.0)
    assert left.tell(phase(96, 100), 49.0) == "tactics 96 of 100 (96%)", "a phase that goes back begins anew"
    left = TimeLeft()
    left.tell(phase(0), 0.0)
    left.tell(phase(90), 90.0)
    assert left.tell(phase(90), 94.0).endswith("about 6 s left")
    for now in (99.5, 101.0, 130.0):
        assert left.tell(phase(90), now) == "tactics 90 of 100 (90%)"


def test_steps_that_come_at_once_have_no_pace() -> None:
    left = TimeLeft()
    left.tell(phase(0), 0.0)
    assert left.tell(phase(5), 0.01) == "tactics 5 of 100 (5%)"
