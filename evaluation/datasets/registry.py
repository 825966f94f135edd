"""Opens a data set by its spec string: a name before the first colon chooses the loader, else a path does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevqa.evaluation.datasets.annotations import is_annotation_spec, open_annotations
from edgevqa.evaluation.datasets.base import Dataset
from edgevqa.evaluation.datasets.folder import TABLE_NAMES, open_folder
from edgevqa.evaluation.datasets.generated_scenes import open_scenes
from edgevqa.evaluation.datasets.image_folder import QUESTIONS_NAME, list_pictures, open_image_folder
from edgevqa.evaluation.datasets.single_shapes import open_single_shapes
from edgevqa.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """One kind of data set: how its spec reads and what opens it, given the part after the colon."""

    form: str
    open: Callable[[str], Dataset]


KINDS: dict[str, DatasetKind] = {
    "easy-vqa": DatasetKind(form="easy-vqa:train|test", open=open_single_shapes),
    "scenes": DatasetKind(form="scenes:SEED:N", open=open_scenes),
}
PATH_FORMS = (
    "FILE.json[::IMAGES_DIR] of VQA v2, TextVQA or VizWiz",
    "a folder with questions.csv or questions.jsonl (image,question,answer)",
    "a folder of pictures with questions.txt (one question a line, asked of every picture)",
    "a folder of pictures alone, for models that need no words (a subfolder's name is the label of its pictures)",
)


def open_dataset(spec: str) -> Dataset:
    """Return the data set that `spec` names. Raises `InputError` with the known forms, `MissingExtraError`."""
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in KINDS:
        return KINDS[prefix].open(rest)
    if Path(spec).is_dir():
        return _open_directory(Path(spec))
    if is_annotation_spec(spec):
        return open_annotations(spec)
    raise InputError(
        f"The data set '{spec}' is unknown and no such file or folder exists. Known forms: {known_forms()}."
    )


def known_forms() -> str:
    """Every form that `open_dataset` understands, for messages and help texts."""
    return "; ".join([*(kind.form for kind in KINDS.values()), *PATH_FORMS])


def _open_directory(folder: Path) -> Dataset:
    has_table = any((folder / name).is_file() for name in TABLE_NAMES)
    if not has_table and ((folder / QUESTIONS_NAME).is_file() or list_pictures(folder)):
        return open_image_folder(folder)
    return open_folder(folder)
