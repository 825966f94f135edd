"""What a build says of a process that died, and of the time it will take; no TensorRT is needed."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevqa.export.engine import process
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.process import TimeLeft, run_job
from edgevqa.export.engine.protocol import Built, Inspected, Job, Message, Phase, Refused, encode_line
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
        numerics="fp16",
        timing_cache=None,
    )


def death(
    monkeypatch: pytest.MonkeyPatch, made: Job, number: int, kills: tuple[int | None, int | None] = (3, 3)
) -> str:
    """What is said of a process that was ended by a signal, with the kernel's count before and after."""
    monkeypatch.setattr(process, "_CHILD", SLEEPS)
    counts = iter(kills)
    monkeypatch.setattr(process, "memory_kills", lambda: next(counts))

    def kill(phase: Phase, resident: float) -> None:
        text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii")
        for pid in text.split():
            os.kill(int(pid), number)

    with pytest.raises(EdgeVQAError) as caught:
        run_job(made, kill)
    return str(caught.value)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="it finds the child in /proc")


@needs_proc
@pytest.mark.parametrize("kills", [(3, 3), (None, None)])
def test_a_killed_process_is_not_said_to_lack_memory_where_the_kernel_tells_of_none(
    monkeypatch: pytest.MonkeyPatch, kills: tuple[int | None, int | None]
) -> None:
    said = death(monkeypatch, job(), signal.SIGKILL, kills)
    assert "built graph 'language_decoder' was ended by SIGKILL at " in said
    assert "something else sent the signal, or the memory limit of a container did. Run the command again." in said
    assert "because memory was short" not in said


@needs_proc
def test_a_process_that_the_kernel_ended_for_memory_is_said_to_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = death(monkeypatch, job(), signal.SIGKILL, (3, 4))
    assert "The kernel ended it because memory was short. Build the int8 variant" in said
    assert "fp16" not in said, "it is what was built"
    assert "--memory-budget" not in said, "none was given"
    assert "raise --memory-budget" in death(monkeypatch, job(memory_budget_bytes=10**12), signal.SIGKILL, (3, 4))


@needs_proc
def test_a_fault_names_its_signal_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said = death(monkeypatch, job(), signal.SIGSEGV)
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


BUILT = Built(
    version=(1, 7, 1, 116),
    profiles=[],
    inputs=[],
    outputs=[],
    high_layers=[],
    high_operators={},
    seconds=1.5,
    peak_memory_mb=1.0,
    warnings=["TensorRT's own"],
)


def saying(monkeypatch: pytest.MonkeyPatch, *messages: Message, then: str) -> None:
    """A building process that says these lines and then does `then`."""
    lines = b"".join(map(encode_line, messages))
    code = f"import os, sys, time; sys.stdin.readline(); os.write(1, {lines!r}); {then}"
    monkeypatch.setattr(process, "_CHILD", ("-c", code))


@pytest.mark.parametrize(
    ("said", "then", "why"),
    [
        ((), "os.abort()", "the process that loaded it died"),
        ((), "time.sleep(60)", "nothing was heard in 1 s"),
        ((Refused(message="It is full.", exit_code=3),), "time.sleep(60)", "It is full"),
    ],
    ids=["death", "silence", "refusal"],
)
def test_an_engine_that_is_written_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, said: tuple[Message, ...], then: str, why: str
) -> None:
    monkeypatch.setattr(process, "_INSPECTION_S", 1.0)
    saying(monkeypatch, BUILT, *said, then=then)
    built = run_job(job(), lambda phase, resident: None)
    assert (built.seconds, built.fp32_layers) == (1.5, None)
    own, told = built.warnings
    assert own == "TensorRT's own"
    assert told == f"the engine is built, and its own FP32 layers are not known: {why}"


def test_the_memory_budget_is_that_of_building_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = tmp_path / "loading"
    told = encode_line(Inspected(layers=["norm"]))
    then = f"time.sleep(0.3); open({str(mark)!r}, 'w').close(); time.sleep(0.3); os.write(1, {told!r})"
    saying(monkeypatch, BUILT, then=then)
    monkeypatch.setattr(process, "resident_mb", lambda pid: 1e6 if mark.exists() else 1.0)
    built = run_job(job(), lambda phase, resident: None, memory_budget_bytes=10**9)
    assert (built.fp32_layers, built.warnings) == (["norm"], ["TensorRT's own"])


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a shell's")
def test_a_build_goes_on_behind_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its parent is then another process than this one."""
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\n{shlex.quote(sys.executable)} "$@"\nexit $?\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    with pytest.raises(EdgeVQAError) as caught:
        run_job(job(), lambda phase, resident: None)
    assert "The process that built" not in str(caught.value), "it told by itself why there is no graph x.onnx"


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
