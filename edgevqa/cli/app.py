"""Typer apps made of plain functions: help as plain text, with the examples in docstrings kept as they are written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
_KEEP_LINES = "\b\n"  # click's mark for a paragraph whose lines are not to be refilled


def make_app(help_line: str) -> typer.Typer:
    """An app without commands yet; `help_line` is its line in the help of the app above."""
    return typer.Typer(
        help=help_line, add_completion=False, rich_markup_mode=None, no_args_is_help=True, context_settings=HELP_FLAGS
    )


def add_command(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Register `function` as a command; its docstring is the help."""
    app.command(name or function.__name__.replace("_", "-"), help=help_text(function))(function)


def help_text(function: Callable[..., Any]) -> str:
    """The docstring for click: paragraphs that have indented lines, such as examples, are kept line by line."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(_KEEP_LINES + text if "\n " in text else text for text in paragraphs)
