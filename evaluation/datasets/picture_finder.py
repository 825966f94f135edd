"""Finds the pictures that annotation files name, in the folders where the data sets' own archives put them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgevqa.evaluation.datasets.annotation_formats import Annotations, Id
from edgevqa.runtime.errors import InputError

ROOMS = ("", "images", "Images")


def find_pictures(annotations: Annotations, file: Path, images: str) -> dict[Id, Path]:
    """Each picture's path by its id. Raises `InputError` with the first missing one, their count and where it was looked.

    Looks in the folder `images` and the official folders inside it; where `images` is empty, in the file's own folder, in
    `images` or `Images` there, and in the official folders in any of these or beside the file's folder.
    """
    folders = _given_folders(file, images, annotations.folders) if images else _usual_folders(file, annotations.folders)
    listed = [(folder, _names_in(folder)) for folder in folders]
    wanted = dict.fromkeys(entry.picture for entry in annotations.entries)
    found: dict[Id, Path] = {}
    missing: list[Id] = []
    for picture in wanted:
        names = possible_names(picture, annotations.file_names)
        path = next((folder / name for folder, there in listed for name in names if name in there), None)
        if path is None:
            missing.append(picture)
        else:
            found[picture] = path
    if missing:
        raise InputError(_missing_message(annotations, file, missing, len(wanted), folders))
    return found


def possible_names(picture: Id, patterns: Iterable[str]) -> list[str]:
    """The file names that a picture may have; patterns for numbers are left out for a name that is none."""
    number = int(picture) if isinstance(picture, int) or (picture.isascii() and picture.isdigit()) else None
    names: list[str] = []
    for pattern in patterns:
        if ":012d" not in pattern:
            names.append(pattern.format(id=picture))
        elif number is not None:
            names.append(pattern.format(id=number))
    return names


def _given_folders(file: Path, images: str, official: Iterable[str]) -> list[Path]:
    base = next((path for path in (Path(images), file.parent / images) if path.is_dir()), None)
    if base is None:
        raise InputError(f"The folder of pictures '{images}' does not exist, nor does {file.parent / images}.")
    return [base, *(base / name for name in official)]


def _usual_folders(file: Path, official: Iterable[str]) -> list[Path]:
    bases = [base / room for base in (file.parent, file.parent.parent) for room in ROOMS]
    return [*bases[: len(ROOMS)], *(base / name for name in official for base in bases)]


def _names_in(folder: Path) -> frozenset[str]:
    """The names in a folder; none where it does not exist or may not be listed. Asking once beats a look for each name."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:
        return frozenset()


def _missing_message(annotations: Annotations, file: Path, missing: list[Id], wanted: int, folders: list[Path]) -> str:
    names = possible_names(missing[0], annotations.file_names)
    there = [str(folder) for folder in folders if folder.is_dir()]
    return (
        f"{len(missing)} of the {wanted} pictures of {file} are missing, the first is {' or '.join(names[:4])}. "
        f"Looked in {', '.join(there)}, and for folders called {', '.join(annotations.folders)} there and beside "
        f"{file.parent}. Name the folder of pictures after the file: {file.name}::IMAGES_DIR"
    )
