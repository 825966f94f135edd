"""Opens a data set by its spec string: the part before the first colon chooses the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevqa.evaluation.datasets.base import Dataset
from edgevqa.evaluation.datasets.folder import open_folder
from edgevqa.evaluation.datasets.generated_scenes import open_scenes
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
FOLDER_FORM = "a folder with questions.csv or questions.jsonl (image,question,answer)"


def open_dataset(spec: str) -> Dataset:
    """Return the data set that `spec` names. Raises `InputError` with the known forms, `MissingExtraError`."""
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in KINDS:
        return KINDS[prefix].open(rest)
    if Path(spec).exists():
        return open_folder(Path(spec))
    raise InputError(f"The data set '{spec}' is unknown and no such folder exists. Known forms: {known_forms()}.")


def known_forms() -> str:
    """Every form that `open_dataset` understands, for messages and help texts."""
    return "; ".join([*(kind.form for kind in KINDS.values()), FOLDER_FORM])
