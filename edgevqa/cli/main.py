"""The `edgevqa` command: a table of subcommands that are imported when called, and exit codes for every error."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from edgevqa import __version__
from edgevqa.cli.app import HELP_FLAGS, add_command, help_text, make_app
from edgevqa.cli.start import INTERRUPTED, begin_command
from edgevqa.cli.streams import STANDARD_OUTPUT, give_up_output, open_streams
from edgevqa.runtime.errors import DISK_FULL, EdgeVQAError, InputError, UnavailableError

PIPE_CLOSED = 141  # 128 + SIGPIPE, which Windows' `signal` lacks
DEBUG_VARIABLE = "EDGEVQA_DEBUG"


class CommandEntry(NamedTuple):
    """Where a command lives (`module:name`, a function or a `typer.Typer`), and its line in `edgevqa --help`."""

    target: str
    help: str


# One line a command, in the order of `edgevqa --help`; the text is the first line of the command's docstring.
COMMANDS: dict[str, CommandEntry] = {
    "demo": CommandEntry(
        "edgevqa.cli.demo:demo",
        "Export the reference model, ask it, quantise it, build engines, compare: the whole story.",
    ),
    "export": CommandEntry("edgevqa.cli.export:export", "Export a model to a bundle of ONNX graphs."),
    "calibrate": CommandEntry(
        "edgevqa.cli.calibrate:calibrate",
        "Run a bundle's model on real questions and note its ranges, for `quantize`.",
    ),
    "quantize": CommandEntry(
        "edgevqa.cli.quantize:quantize",
        "Add variants of lower precision to a bundle, and say what each layer costs.",
    ),
    "sensitivity": CommandEntry(
        "edgevqa.cli.sensitivity:sensitivity", "Rank the layers by what quantising them costs."
    ),
    "ask": CommandEntry("edgevqa.cli.ask:ask", "Answer questions about a picture."),
    "search": CommandEntry(
        "edgevqa.cli.search:search",
        "Find the pictures of a folder that fit a text best, with a dual encoder such as CLIP.",
    ),
    "bench": CommandEntry("edgevqa.cli.bench:bench", "Measure latency without a data set."),
    "build": CommandEntry(
        "edgevqa.cli.build:build",
        "Build TensorRT engines of a bundle, and add them to it. Needs TensorRT, no torch and no checkpoint.",
    ),
    "evaluate": CommandEntry(
        "edgevqa.cli.evaluate:evaluate", "Measure how right and how fast a bundle answers a data set."
    ),
    "compare": CommandEntry(
        "edgevqa.cli.compare:compare", "Compare precisions and backends: accuracy, latency, memory, size, energy."
    ),
    "features": CommandEntry(
        "edgevqa.cli.features:features",
        "Write an encoder's features of a picture, or the picture restored from a part of its patches.",
    ),
    "graph": CommandEntry("edgevqa.cli.graph:app", "Run one graph of a bundle on given arrays."),
    "inspect": CommandEntry(
        "edgevqa.cli.inspect:inspect",
        "Show what is in a bundle, or what an engine was built for. TensorRT is not needed.",
    ),
    "bundle": CommandEntry("edgevqa.cli.bundle:app", "Verify, pack and unpack bundles."),
    "families": CommandEntry("edgevqa.cli.tables:families", "List the model families that can be exported."),
    "targets": CommandEntry(
        "edgevqa.cli.tables:targets", "List the targets that bundles can be made for, and what each cannot do."
    ),
    "doctor": CommandEntry("edgevqa.cli.doctor:doctor", "Show what this machine has, and what to install."),
}


def load_command(name: str) -> Any:
    """Import the command and return it as typer runs it."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_command(target)
    else:
        single = make_app(COMMANDS[name].help)
        add_command(single, target, name)
        command = typer.main.get_command(single)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """Lists `COMMANDS` without importing them, and turns errors into messages and exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows name and help line; `resolve_command` imports the real one."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else TyperCommand(name=cmd_name, help=entry.help, rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        loaded = load_command(name) if name in COMMANDS else command
        begin_command()
        return name, loaded, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = report(error, debug=bool(ctx.params.get("debug")))
            if code is None:
                raise
            raise typer.Exit(code) from error


def report(error: BaseException, *, debug: bool) -> int | None:
    """Write the error's message to standard error and return its exit code; None for what is typer's, or a bug.

    Of an interruption `run` writes.
    """
    if _came_of(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return PIPE_CLOSED
    known = _as_ours(error)
    if known is None and isinstance(error, Exception) and not _is_typers(error):
        traceback.print_exception(type(error), error, error.__traceback__)
        sys.stderr.write(
            f"error: {type(error).__name__}: this is a bug in edgevqa; please report it with the lines above.\n"
        )
        return EdgeVQAError.exit_code
    if known is None:
        return None
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stderr.write(f"error: {known}\n")
    return known.exit_code


def _came_of(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether one of that kind is behind it: Ctrl-C within a native module's import comes as an ImportError."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_typers(error: Exception) -> bool:
    """Whether it is typer's own way of leaving: usage errors, --help, --version. Newer typers bring their own click."""
    return any(kind.__module__.partition(".")[0] in ("click", "typer") for kind in type(error).__mro__)


def _as_ours(error: BaseException) -> EdgeVQAError | None:
    """The error as one of ours: what the operating system refuses, and a lack of memory, are no bugs."""
    if isinstance(error, EdgeVQAError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        said = f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
        if error.filename == STANDARD_OUTPUT or error.errno in DISK_FULL:
            return UnavailableError(f"{said} What is written there is not whole. Free some space, or write elsewhere.")
        return InputError(said)
    if isinstance(error, MemoryError):
        return UnavailableError(
            "The memory of this machine does not suffice. Close other programs, or use a smaller model."
        )
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgevqa {__version__}")
        raise typer.Exit()


def root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and leave.", callback=_print_version, is_eager=True
    ),
    debug: bool = typer.Option(False, "--debug", envvar=DEBUG_VARIABLE, help="Show the traceback of errors."),
) -> None:
    """Visual question answering, from a checkpoint to answers on an embedded or server GPU.

    Example:
      edgevqa export reference -o bundle
      edgevqa ask bundle picture.png "what color is it?"

    Exit codes: 0 done; 1 a check failed; 2 wrong usage or input; 3 something needed is not on this machine;
    70 a bug or a failed backend; 130 interrupted.
    """


def make_root() -> typer.Typer:
    """The whole command line as a typer app."""
    app = typer.Typer(
        cls=LazyGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True, context_settings=HELP_FLAGS
    )
    app.callback(help=help_text(root))(root)
    return app


def run(args: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    try:
        make_root()(args=list(args), prog_name="edgevqa", standalone_mode=True)
        code = 0
    except SystemExit as leaving:
        code = _code_of(leaving)
    except OSError as error:  # of help and version, which typer writes before a command is invoked
        code = report(error, debug=False) or 0
    try:
        sys.stdout.flush()
    except OSError as error:
        told = code in (PIPE_CLOSED, UnavailableError.exit_code)  # what could not be written fails once more
        code = code if told else report(error, debug=False) or 0
    return code


def _code_of(leaving: SystemExit) -> int:
    """The exit code of what ended; typer and rich give 1, each by itself, where nobody reads any more."""
    if _came_of(leaving, KeyboardInterrupt):  # here, not in `report`: typer itself handles one between its steps
        sys.stderr.write("\nInterrupted.\n")
        return INTERRUPTED
    if _came_of(leaving, BrokenPipeError):
        return PIPE_CLOSED
    return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def main() -> NoReturn:
    """The command line of this process; the `edgevqa` script calls it through `edgevqa.cli.start`."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)
    open_streams()
    code = run(sys.argv[1:])
    lost = code == PIPE_CLOSED
    try:
        sys.stdout.flush()
    except OSError:
        lost = True
    if lost:  # `run` has told
        give_up_output()
    sys.exit(code)


def _leave(signum: int, frame: FrameType | None) -> None:
    """On `kill` and when the terminal is closed, leave like on Ctrl-C, so that nothing half-written stays."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
