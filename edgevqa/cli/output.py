"""Output of the commands: results on standard output, messages and progress on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgevqa.runtime.hashing import Progress

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160


def print_text(text: str) -> None:
    """A line of the result, as it is."""
    sys.stdout.write(f"{text}\n")


def print_json(value: Any) -> None:
    """The whole result as one JSON document; takes what msgspec can encode, NaN becomes null."""
    print_text(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def note(text: str) -> None:
    """A message for the person at the terminal."""
    sys.stderr.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A table of the result. A column whose name begins with `>` is aligned right (and loses the sign)."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    print_text("")
    _console().print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values of the result, one pair a line, the values in one column."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print_text(f"{name:<{width}}  {value}".rstrip())


@contextlib.contextmanager
def progress_bar(label: str) -> Generator[Progress, None, None]:
    """A bar with the time left, on standard error and only at a terminal; gives the callback that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def advance(name: str, done: int, total: int) -> None:
            bar.update(task, description=f"{label} {name}", completed=done, total=total)

        yield advance


@contextlib.contextmanager
def step_bar(label: str) -> Generator[Callable[[str, int, int], None], None, None]:
    """A bar over numbered steps with the time gone, on standard error; without a terminal, one line a step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{label}: {what}", completed=done, total=total)
            if not console.is_terminal:
                note(f"{label}: {what}")

        yield advance


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
