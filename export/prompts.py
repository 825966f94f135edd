"""The prompt around a question: a checkpoint's own chat template, rendered once, or the family's published prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgevqa.export.assets import load_tokenizer
from edgevqa.export.sources import read_json, reason_of, refuse_pointer, shorten
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.text import QUESTION

_SENTINEL = "QUESTIONGOESHERE"
_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")


def prompt_template(folder: Path, *, default: str, images: int = 1) -> str:
    """What the chat template of `folder` makes of a user's turn: `images` pictures, then `{question}`; else `default`.

    A leading begin-of-text token that the tokenizer adds itself is left out. Raises `CheckpointError` for a template that
    cannot be rendered, or loses the question.
    """
    source = chat_template(folder)
    if source is None:
        return default
    tokenizer: Any = load_tokenizer(folder)
    content = [{"type": "image"}] * images + [{"type": "text", "text": _SENTINEL}]
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=source, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template raises
        raise CheckpointError(f"The chat template of {folder} cannot be rendered: {reason_of(error)}") from error
    if rendered.count(_SENTINEL) != 1:
        raise CheckpointError(
            f"The chat template of {folder} gives no prompt with the question in it: {shorten(repr(rendered))}."
        )
    first = str(tokenizer.bos_token or "")
    if first and rendered.startswith(first) and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:
        rendered = rendered[len(first) :]
    return str(rendered).replace(_SENTINEL, QUESTION)


def picture_separator(
    folder: Path, tokenizer: bytes, *, image_token_id: int, defaults: tuple[str, str]
) -> list[int] | None:
    """The ids that stand between two pictures in a prompt; `defaults` are the prompts of one and two without a chat template.

    None where the two prompts differ by more.
    """
    read = Tokenizer.from_str(tokenizer.decode("utf-8"))
    read.no_truncation()
    one, two = (
        read.encode(prompt_template(folder, default=default, images=images)).ids
        for images, default in enumerate(defaults, start=1)
    )
    if two.count(image_token_id) != 2 or image_token_id not in one:
        return None
    first = two.index(image_token_id)
    second = two.index(image_token_id, first + 1)
    separator = two[first + 1 : second]
    place = one.index(image_token_id)
    return separator if [*one[: place + 1], *separator, *one[place:]] == two else None


def chat_template(folder: Path) -> str | None:
    """The template's source, in whichever file the checkpoint keeps it, or None."""
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return _text(path)
        found = read_json(path, what="it may hold the chat template").get("chat_template")
        if isinstance(found, str):
            return found
    return None


def _text(path: Path) -> str:
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}. Copy it again from the model's page.") from error
