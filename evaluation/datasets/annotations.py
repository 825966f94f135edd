"""An annotation file as a data set: `FILE.json`, `QUESTIONS.json,ANNOTATIONS.json`, either with `::IMAGES_DIR` after it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from edgevqa.evaluation.datasets.annotation_formats import Entry, Id, read_annotations
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.image_files import open_rgb
from edgevqa.evaluation.datasets.picture_finder import find_pictures
from edgevqa.runtime.errors import InputError

SEPARATOR = "::"


class AnnotatedQuestions:
    """The questions of an annotation file in its order; `question_type` is the file's `answer_type`, `all` without one."""

    def __init__(self, spec: str, entries: list[Entry], pictures: dict[Id, Path]) -> None:
        self.spec = spec
        self._entries = entries
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        return Sample(
            question=entry.question,
            answers=list(entry.answers),
            question_type=entry.question_type,
            image_id=str(entry.picture),
            question_id=entry.question_id,
            open_image=partial(open_rgb, self._pictures[entry.picture]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def is_annotation_spec(spec: str) -> bool:
    """Whether a spec names a file that exists, with or without a second one and a folder of pictures."""
    return any(path.is_file() for path in _files_of(spec.partition(SEPARATOR)[0]))


def open_annotations(spec: str) -> AnnotatedQuestions:
    """Open VQA v2, TextVQA or VizWiz by its files. Raises `InputError` that names what was looked for and where."""
    names, _, images = spec.partition(SEPARATOR)
    files = _files_of(names)
    if len(files) > 2:
        raise InputError(f"'{spec}' names {len(files)} files; expected one, or QUESTIONS.json,ANNOTATIONS.json.")
    annotations = read_annotations(files)
    return AnnotatedQuestions(spec, annotations.entries, find_pictures(annotations, files[0], images))


def _files_of(names: str) -> list[Path]:
    whole = Path(names).absolute()  # absolute, so that the folder around the file's has a name
    return [whole] if whole.is_file() else [Path(name).absolute() for name in names.split(",")]
