"""Pictures alone, or with a `questions.txt`, one question a line, of which every picture is asked every one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.image_files import open_rgb
from edgevqa.runtime.errors import InputError

QUESTIONS_NAME = "questions.txt"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder:
    """Each picture with each question, picture by picture in the order of their names.

    Without questions each picture comes once, with an empty one. The answer is then the subfolder's name, as classification
    data is kept; else none is known.
    """

    def __init__(self, folder: Path, pictures: list[str], questions: list[str]) -> None:
        self.spec = str(folder)
        self._folder = folder
        self._pictures = pictures
        self._questions = questions or [""]
        self._labelled = not questions

    def __len__(self) -> int:
        return len(self._pictures) * len(self._questions)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.spec} has no question {index}.")
        index %= len(self)
        picture, question = divmod(index, len(self._questions))
        label = self._pictures[picture].rpartition("/")[0].rpartition("/")[2]
        return Sample(
            question=self._questions[question],
            answers=[label] if label and self._labelled else [],
            question_type="all",
            image_id=self._pictures[picture],
            question_id=str(index),
            open_image=partial(open_rgb, self._folder / self._pictures[picture]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def open_image_folder(folder: Path) -> ImageFolder:
    """Open the pictures in a folder and its subfolders; hidden ones, empty lines and repeated questions are left out.

    Raises `InputError` where there is no picture, or no question in `questions.txt`.
    """
    table = folder / QUESTIONS_NAME
    questions = _read_questions(table) if table.is_file() else []
    pictures = list_pictures(folder)
    if not pictures:
        raise InputError(f"{folder} has a {QUESTIONS_NAME}, but no picture; looked for {', '.join(SUFFIXES)}.")
    return ImageFolder(folder, pictures, questions)


def list_pictures(folder: Path) -> list[str]:
    """The paths of the pictures in a folder and its subfolders, relative to it, sorted; hidden ones are left out."""
    relative = (
        path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    return sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))


def _read_questions(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    questions = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not questions:
        raise InputError(f"{path} holds no question; expected one a line.")
    return questions
