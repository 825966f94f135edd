"""Reads the annotation files of VQA v2, TextVQA and VizWiz; which of them a file is, its content says.

VQA v2   an object with `questions`, and one with `annotations` (ten answers a question), joined by `question_id`;
         OK-VQA and data sets converted to this form read the same way
TextVQA  an object with `data`: questions with ten answers and an `image_id`, the picture's name without its suffix
VizWiz   an array of `image`, `question` and `answers`, of which `unanswerable` is one; all ten count, however sure
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edgevqa.runtime.errors import InputError

COCO_SPLITS = ("train2014", "val2014", "test2015")
FORMS = (
    "VQA v2 (an object with 'questions' or 'annotations'), TextVQA (an object with 'data') or VizWiz (an array of "
    "questions with 'image')"
)
Id = int | str
Content = bytes | msgspec.Raw
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One question; `picture` is the id or file name by which its picture is found."""

    question: str
    answers: tuple[str, ...]
    question_type: str
    question_id: str
    picture: Id


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Questions in the file's order, and how their pictures' files and folders are called officially.

    `file_names` are patterns with `{id}`, or `{id:012d}` for whole numbers.
    """

    entries: list[Entry]
    file_names: tuple[str, ...]
    folders: tuple[str, ...]


class _Answer(msgspec.Struct, frozen=True, gc=False):
    answer: str


class _Question(msgspec.Struct, frozen=True, gc=False):
    question_id: Id
    image_id: Id
    question: str


class _Annotation(msgspec.Struct, frozen=True, gc=False):
    question_id: Id
    answers: list[_Answer]
    answer_type: str = "all"


class _TextQuestion(msgspec.Struct, frozen=True, gc=False):
    question: str
    image_id: Id
    question_id: Id
    answers: list[str] = []
    set_name: str = ""


class _BlindQuestion(msgspec.Struct, frozen=True, gc=False):
    image: str
    question: str
    answers: list[_Answer] = []
    answer_type: str = "all"


class _Parts(msgspec.Struct, frozen=True):
    """The parts of an object, undecoded; which of them there are tells the format."""

    questions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    annotations: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_subtype: str = ""


def read_annotations(files: list[Path]) -> Annotations:
    """Read one annotation file, or the two of VQA v2 in either order. Raises `InputError` that names the file."""
    content = {path: _read(path) for path in files}
    if len(files) == 1:
        path, text = files[0], content[files[0]]
        if text.lstrip()[:1] == b"[":
            return _blind(path, text)
        parts = _decode(path, text, _Parts)
        if parts.data is not msgspec.UNSET:
            return _text(path, parts.data)
        if (parts.questions is msgspec.UNSET) != (parts.annotations is msgspec.UNSET):
            return _pair(_with_sibling(path, parts))
        if parts.questions is msgspec.UNSET:
            raise InputError(f"{path} is no annotation file that edgevqa knows; expected {FORMS}.")
    return _pair({path: _decode(path, text, _Parts) for path, text in content.items()})


def sibling_candidates(path: Path) -> list[Path]:
    """Where the other file of a VQA v2 pair may lie, by the official names.

    `v2_OpenEnded_mscoco_val2014_questions.json` belongs to `v2_mscoco_val2014_annotations.json`; in the same folder,
    or in `Questions` and `Annotations` side by side.
    """
    if "questions" in path.name:
        other = path.name.replace("questions", "annotations")
        names, room = [other.replace("OpenEnded_", ""), other], "Annotations"
    elif "annotations" in path.name:
        other = path.name.replace("annotations", "questions")
        version = "v2_" if other.startswith("v2_") else ""
        names, room = [f"{version}OpenEnded_{other.removeprefix(version)}", other], "Questions"
    else:
        return []
    folders = [path.parent, path.parent.parent / room]
    return [folder / name for folder in folders for name in dict.fromkeys(names)]


def _with_sibling(path: Path, parts: _Parts) -> dict[Path, _Parts]:
    candidates = sibling_candidates(path)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is not None:
        return {path: parts, found: _decode(found, _read(found), _Parts)}
    if parts.questions is not msgspec.UNSET and parts.data_subtype.startswith("test"):
        return {path: parts}  # the answers of the test splits are not published
    missing = "annotations" if parts.annotations is msgspec.UNSET else "questions"
    looked = f"; looked for {', '.join(map(str, candidates))}" if candidates else ""
    raise InputError(
        f"{path} is one of the two files of VQA v2, and the one with the {missing} is not beside it{looked}. "
        "Give both with a comma between them: QUESTIONS.json,ANNOTATIONS.json"
    )


def _pair(parts: dict[Path, _Parts]) -> Annotations:
    """Join the questions with their annotations."""
    asked = [(path, part) for path, part in parts.items() if part.questions is not msgspec.UNSET]
    told = [(path, part) for path, part in parts.items() if part.annotations is not msgspec.UNSET]
    if len(asked) != 1 or len(told) > 1 or len(told) < len(parts) - 1:
        names = " and ".join(str(path) for path in parts)
        raise InputError(
            f"{names} are not the two files of VQA v2; expected one with 'questions', one with 'annotations'."
        )
    path, part = asked[0]
    questions = _decode(path, _raw(part.questions), list[_Question], "questions")
    answers = _answers(*told[0], questions) if told else {}
    entries = [
        Entry(
            question=row.question,
            answers=answers.get(row.question_id, ((), "all"))[0],
            question_type=answers.get(row.question_id, ((), "all"))[1],
            question_id=str(row.question_id),
            picture=row.image_id,
        )
        for row in questions
    ]
    return _paired_annotations(_filled(path, entries), part.data_subtype.replace("test-dev", "test"))


def _answers(path: Path, part: _Parts, questions: list[_Question]) -> dict[Id, tuple[tuple[str, ...], str]]:
    rows = _decode(path, _raw(part.annotations), list[_Annotation], "annotations")
    answers = {row.question_id: (_texts(row.answers), sys.intern(row.answer_type)) for row in rows}
    missing = [row.question_id for row in questions if row.question_id not in answers]
    if missing:
        raise InputError(
            f"{path} has no answers for {len(missing)} of {len(questions)} questions, the first is question {missing[0]}. "
            "Do both files belong to one split?"
        )
    return answers


def _paired_annotations(entries: list[Entry], split: str) -> Annotations:
    splits = (split,) if split else COCO_SPLITS
    coco = [f"COCO_{name}_{{id:012d}}.jpg" for name in splits]
    drawn = [f"abstract_v002_{name}_{{id:012d}}.png" for name in splits]
    plain = ["{id:012d}.jpg", "{id}", "{id}.jpg", "{id}.png"]
    folders = [room for name in splits for room in (name, f"mscoco/{name}", f"abstract_v002/{name}")]
    return Annotations(entries=entries, file_names=(*coco, *drawn, *plain), folders=tuple(folders))


def _text(path: Path, content: Content) -> Annotations:
    rows = _decode(path, content, list[_TextQuestion], "data")
    entries = [
        Entry(
            question=row.question,
            answers=tuple(map(sys.intern, row.answers)),
            question_type="all",
            question_id=str(row.question_id),
            picture=row.image_id,
        )
        for row in rows
    ]
    # The official archive of the training and validation pictures unpacks to `train_images`.
    sets = ["train", *sorted({row.set_name for row in rows} - {"train", ""})]
    folders = [room for name in sets for room in (f"{name}_images", name)]
    return Annotations(
        entries=_filled(path, entries),
        file_names=("{id}.jpg", "{id}.png", "{id}"),
        folders=("train_val_images/train_images", *folders),
    )


def _blind(path: Path, content: bytes) -> Annotations:
    rows = _decode(path, content, list[_BlindQuestion])
    entries = [
        Entry(
            question=row.question,
            answers=_texts(row.answers),
            question_type=sys.intern(row.answer_type),
            question_id=str(index),
            picture=row.image,
        )
        for index, row in enumerate(rows)
    ]
    return Annotations(entries=_filled(path, entries), file_names=("{id}",), folders=("train", "val", "test"))


def _texts(answers: list[_Answer]) -> tuple[str, ...]:
    """The answers' texts; equal ones are one object, since millions of them are a few thousand words."""
    return tuple(sys.intern(answer.answer) for answer in answers)


def _filled(path: Path, entries: list[Entry]) -> list[Entry]:
    if not entries:
        raise InputError(f"{path} holds no question.")
    return entries


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"The annotation file {path} cannot be read: {error.strerror or error}.") from error


def _raw(part: msgspec.Raw | msgspec.UnsetType) -> Content:
    return b"[]" if isinstance(part, msgspec.UnsetType) else part


def _decode(path: Path, content: Content, form: type[T], part: str = "") -> T:
    try:
        return msgspec.json.decode(content, type=form)
    except msgspec.ValidationError as error:
        where = f" in '{part}'" if part else ""
        raise InputError(
            f"{path} is no annotation file that edgevqa can use: {error}{where}. Expected {FORMS}."
        ) from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} is not JSON: {error}. Expected {FORMS}; for a table of questions give its folder."
        ) from error
