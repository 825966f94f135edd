"""Output of the commands: results on standard output, messages and progress on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgevqa.runtime.hashing import Progress

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160
LINE_EVERY_S = 10.0


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
    """A bar over numbered steps with the time gone, on standard error; without a terminal a line a step, or every 10 s.

    A step is a number, and what is being done before its first colon: what is behind that may change all the time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        told, told_at = ("", "", -1), 0.0

        def advance(what: str, done: int, total: int) -> None:
            nonlocal told, told_at
            bar.update(task, description=f"{label}: {what}", completed=done, total=total)
            if console.is_terminal or what == told[0]:
                return
            step = (what.partition(":")[0], done)
            if step != told[1:] or time.monotonic() - told_at > LINE_EVERY_S:
                note(f"{label}: {what}")
                told, told_at = (what, *step), time.monotonic()

        yield advance


@contextlib.contextmanager
def sample_bar(label: str) -> Generator[Callable[[str, int, int], None], None, None]:
    """A bar over samples with the time left, on standard error; without a terminal a line a phase, and every 10 s."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        phase, first, began, told = "", 0, 0.0, 0.0

        def advance(what: str, done: int, total: int) -> None:
            nonlocal phase, first, began, told
            now = time.monotonic()
            if what != phase:
                phase, first, began, told = what, done, now, now
                bar.reset(task, description=f"{label}: {what}", completed=done, total=total)
                if not console.is_terminal:
                    note(f"{label}: {what}")
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and now - told > LINE_EVERY_S and done > first:
                left = (now - began) / (done - first) * (total - done)
                note(f"{label}: {what} {done} of {total}, about {left:.0f} s left")
                told = now

        yield advance


@contextlib.contextmanager
def count_bar() -> Generator[Callable[[str, int, int], None], None, None]:
    """A bar over things that are counted, with the time left of each stage, on standard error; else a line a stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        stage = ""

        def advance(what: str, done: int, total: int) -> None:
            nonlocal stage
            if what != stage:
                stage = what
                bar.reset(task, total=total, description=what)
                if not console.is_terminal:
                    note(f"{what} ({total:,})")
            bar.update(task, completed=done, total=total)

        yield advance


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
