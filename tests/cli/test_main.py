"""The command line as a whole: lazy imports, help with examples, exit codes, closed pipes, signals."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import edgevqa
from edgevqa.cli import main
from edgevqa.cli.app import help_text
from edgevqa.cli.main import COMMANDS, CommandEntry
from edgevqa.runtime import errors
from edgevqa.runtime.bundle import Bundle

Invoke = Callable[..., tuple[int, str, str]]


def start(*args: str, code: str = "from edgevqa.cli.main import main; main()") -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Adds a command `fail` that raises the given error."""

    def add(error: BaseException) -> None:
        module = ModuleType("failing_command")

        def fail() -> None:
            """Fail."""
            raise error

        module.__dict__["fail"] = fail
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(COMMANDS, "fail", CommandEntry("failing_command:fail", "Fail."))

    return add


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys, json; from edgevqa.cli.main import run; code = run(['--help']);"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    status, out, err = finish(start(code=code))
    assert status == 0
    result, modules = json.loads(err)
    assert result == 0
    assert all(f"\n  {name} " in out for name in COMMANDS)
    loaded = {COMMANDS[name].target.partition(":")[0] for name in COMMANDS} & set(modules)
    assert loaded == set()
    assert not {"numpy", "PIL", "tokenizers", "onnxruntime", "torch"} & set(modules)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there_with_its_help_line_and_an_example(name: str, invoke: Invoke) -> None:
    entry = COMMANDS[name]
    module, _, attribute = entry.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    commands = {name: target}
    if not inspect.isfunction(target):
        assert target.info.help == entry.help
        commands = {f"{name} {info.name}": info.callback for info in target.registered_commands}
        assert commands
    else:
        assert (target.__doc__ or "").splitlines()[0].startswith(entry.help.rstrip("."))
    for line in commands:
        code, out, err = invoke(*line.split(), "--help")
        assert (code, err) == (0, "")
        assert f"\n  Example:\n    edgevqa {line}" in out or "\n  Examples:\n    edgevqa" in out, out


def test_version(invoke: Invoke) -> None:
    assert invoke("--version") == (0, f"edgevqa {edgevqa.__version__}\n", "")


@pytest.mark.parametrize(
    "args", [("bundl",), ("inspect",), ("inspect", "--colour"), ("bundle", "repack"), ("inspect", "a", "b")]
)
def test_wrong_usage_is_2(invoke: Invoke, args: tuple[str, ...]) -> None:
    code, out, err = invoke(*args)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.CheckFailed("parity failed"), 1, "error: parity failed\n"),
        (errors.BundleError("no bundle"), 2, "error: no bundle\n"),
        (errors.MissingExtraError("onnx", "export", "Exporting"), 3, "pip install 'edgevqa[export]'\n"),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 2, "error: x.npz: No such file or directory.\n"),
        (OSError(28, "No space left on device", "x.npz"), 3, "error: x.npz: No space left on device. "),
        (MemoryError(), 3, "memory of this machine does not suffice"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_errors_are_messages_and_codes(
    invoke: Invoke, failing: Callable[[BaseException], None], error: BaseException, code: int, message: str
) -> None:
    failing(error)
    found, out, err = invoke("fail")
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(
    invoke: Invoke, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(errors.BundleError("no bundle"))
    code, _, err = invoke("--debug", "fail")
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("error: no bundle\n")
    monkeypatch.setenv(main.DEBUG_VARIABLE, "1")
    assert "Traceback" in invoke("fail")[2]


def test_a_bug_is_not_disguised(invoke: Invoke, failing: Callable[[BaseException], None]) -> None:
    failing(ZeroDivisionError("a bug"))
    code, out, err = invoke("fail")
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert "ZeroDivisionError: this is a bug in edgevqa" in err


def test_examples_keep_their_lines() -> None:
    def command() -> None:
        """Do it.

        Example:
          edgevqa do
          edgevqa do again
        """

    assert help_text(command) == "Do it.\n\n\b\nExample:\n  edgevqa do\n  edgevqa do again"


# Tables are written by rich and help by typer: each of them gives 1 by itself.
@pytest.mark.parametrize("args", [("doctor",), ("doctor", "--json"), ("targets",), ("--help",)])
def test_a_reader_that_leaves_is_no_error(args: tuple[str, ...]) -> None:
    process = start(*args)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == main.PIPE_CLOSED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [("targets", "--json"), ("targets",), ("--version",)])
def test_a_result_that_cannot_be_written_names_standard_output(args: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "edgevqa.cli.main", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            timeout=60,
        )
    assert process.returncode == 3
    assert process.stderr.startswith("error: standard output: No space left on device.")
    assert process.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("targets >/dev/full 2>&1", 3),
        ("targets --json 2>/dev/full", 0),
        ("inspect nowhere 2>/dev/full", 2),
        ("--debug inspect nowhere 2>/dev/full", 2),
        ("inspect 2>/dev/full", 2),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_message_that_cannot_be_written_changes_no_exit_code(line: str, code: int, unbuffered: str) -> None:
    """An exit code of 1 would say that a check failed. Usage errors are written by typer, not by us."""
    line = f'exec "$0" -m edgevqa.cli.main {line}'
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable], stdout=subprocess.DEVNULL, env=environment, timeout=60
    )
    assert process.returncode == code


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell that closes a stream")
@pytest.mark.parametrize(("line", "code"), [("targets >&-", 0), ("inspect nowhere 2>&-", 2)])
def test_a_stream_that_the_shell_closed_is_no_bug(line: str, code: int) -> None:
    line = f'exec "$0" -m edgevqa.cli.main {line}'
    process = subprocess.run(["/bin/sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout, process.stderr) == (code, "", "")


SIGNALLED = """
import os, signal, sys
from contextlib import nullcontext
from edgevqa.cli import bundle, main
number = getattr(signal, sys.argv.pop())
bundle.progress_bar = lambda label: nullcontext(lambda name, done, total: os.kill(os.getpid(), number))
main.main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_leave_nothing_behind(fake_bundle: Bundle, tmp_path: Path, name: str, code: int) -> None:
    """A real signal in the middle of `bundle pack`."""
    process = start("bundle", "pack", str(fake_bundle.root), "-o", str(tmp_path / "x.tar"), name, code=SIGNALLED)
    found, out, err = finish(process)
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_terminal_without_unicode_gets_escapes() -> None:
    """A question is echoed with its answer, and must not break on a terminal that cannot show it."""
    code = "import sys\nfrom edgevqa.cli import main\nmain.run = lambda args: print('caf\\xe9') or 0\nmain.main()"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert (process.returncode, process.stdout) == (0, b"caf\\xe9\n"), process.stderr
