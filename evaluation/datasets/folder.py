"""A folder of one's own: pictures and a questions.csv or questions.jsonl with the fields image, question, answer."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.image_files import open_rgb
from edgevqa.runtime.errors import InputError

TABLE_NAMES = ("questions.csv", "questions.jsonl")
FIELDS = ("image", "question", "answer")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table; `image` is a path inside the folder. Further fields are ignored.

    An empty `answer` (`""`, `[]`) says that none is known: such a question can be asked, not scored.
    """

    image: str
    question: str
    answer: str | list[str]
    type: str = "all"


class FolderDataset:
    """Questions from a table beside its pictures, in the table's order."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self.spec = str(folder)
        self._folder = folder
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        return Sample(
            question=row.question,
            answers=_known(row.answer),
            question_type=row.type,
            image_id=row.image,
            question_id=str(index),
            open_image=partial(open_rgb, self._folder / row.image),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def open_folder(folder: Path) -> FolderDataset:
    """Read a folder's table. Raises `InputError` naming the file and the line that cannot be used."""
    table = next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)
    if table is None:
        raise InputError(
            f"{folder} has no {' or '.join(TABLE_NAMES)}; expected the fields {', '.join(FIELDS)}. "
            "For pictures alone put typical questions into a questions.txt there, one a line."
        )
    rows = _read_csv(table) if table.suffix == ".csv" else _read_jsonl(table)
    if not rows:
        raise InputError(f"{table} holds no question.")
    for number, row in enumerate(rows, start=1):
        if not _inside(folder, row.image):
            raise InputError(f"{table}, question {number}: the picture '{row.image}' is not a file inside {folder}.")
    return FolderDataset(folder, rows)


def _read_csv(table: Path) -> list[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in FIELDS if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError(
                    f"{table} lacks the columns {', '.join(missing)}; its first line should name {', '.join(FIELDS)}."
                )
            return [_convert(table, reader.line_num, line) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as UTF-8 CSV: {error}.") from error


def _convert(table: Path, line_number: int, line: dict[str, str]) -> Row:
    try:
        return msgspec.convert(line, Row)
    except msgspec.ValidationError as error:
        raise InputError(f"{table}, line {line_number}: {error}.") from error


def _read_jsonl(table: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(table.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(msgspec.json.decode(line, type=Row))
            except msgspec.MsgspecError as error:
                raise InputError(f"{table}, line {number}: {error}.") from error
    return rows


def _known(answer: str | list[str]) -> list[str]:
    answers = [answer] if isinstance(answer, str) else answer
    return [text for text in answers if text.strip()]


def _inside(folder: Path, image: str) -> bool:
    path = (folder / image).resolve()
    return path.is_file() and folder.resolve() in path.parents
