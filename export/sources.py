"""What SOURCE means: the packaged reference model, a folder, an official checkpoint, or a hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgevqa.runtime.errors import CheckpointError, InputError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_POINTER = b"version https://git-lfs"  # what a clone without Git LFS leaves in the place of a big file
_LONGEST_REASON = 240


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model lies. `path` is a folder or, for an official checkpoint, its file; `config` is that file's yaml."""

    kind: Literal["reference", "folder", "hub", "official"]
    family: str
    id: str
    path: Path
    root: Path
    config: Path | None = None
    revision: str | None = None


def resolve_source(source: str, *, config: Path | None, root: Path, revision: str | None = None) -> Source:
    """Find out what `source` is and which family it belongs to.

    Raises `InputError` for what is none of the four forms or of no known family, `NetworkError` for a hub id that
    cannot be had.
    """
    path = Path(source)
    if source == "reference":
        folder = reference_folder()
        return Source(kind="reference", family=_family_of(folder), id="reference", path=folder, root=root)
    if path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir():
        return _official(path, config, root)
    if config is not None:
        raise InputError(
            f"--config goes with an official checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}), not with '{source}'."
        )
    if path.is_dir():
        return Source(kind="folder", family=_family_of(path), id=path.resolve().name, path=path, root=root)
    if path.exists():
        raise InputError(
            f"'{source}' is a file, but none of {', '.join(CHECKPOINT_SUFFIXES)}; expected a folder, a hub id or a checkpoint."
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"'{source}' does not exist. Give a folder, an official checkpoint, a hub id, or `reference`.")
    return _from_hub(source, root, revision)


def reference_folder() -> Path:
    """The folder of the packaged reference model."""
    import edgevqa.models.reference

    return Path(edgevqa.models.reference.__file__).parent


def hash_files(paths: Iterable[Path]) -> str:
    """One sha256 over the contents of `paths`, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def refuse_pointer(path: Path) -> None:
    """Raises `CheckpointError` where a file is what Git LFS leaves in the place of one that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder, then export again."
            )


def reason_of(error: BaseException) -> str:
    """The first line of an error, for a message of ours: what follows are lists and advice for other programs."""
    return shorten(str(error).strip().partition("\n")[0] or type(error).__name__)


def shorten(text: str) -> str:
    """The beginning of a text that may be a whole list, for a message."""
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _official(path: Path, config: Path | None, root: Path) -> Source:
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist; expected a checkpoint file in the official format.")
    refuse_pointer(path)
    if config is None:
        raise InputError(f"'{path}' is an official checkpoint, which needs its yaml: add --config CONFIG.yaml.")
    if not config.is_file():
        raise InputError(
            f"--config '{config}' {'is a folder' if config.is_dir() else 'does not exist'}; expected the checkpoint's yaml."
        )
    return Source(kind="official", family="qavit_t5", id=path.name, path=path, root=root, config=config)


def _from_hub(source: str, root: Path, revision: str | None) -> Source:
    from edgevqa.models.hub import resolve_folder

    folder = resolve_folder(source, root=root, weights=True, revision=revision)
    kind: Literal["folder", "hub"] = "folder" if folder == root / source else "hub"
    found = revision or (folder.name if kind == "hub" else None)
    return Source(kind=kind, family=_family_of(folder), id=source, path=folder, root=root, revision=found)


def _family_of(folder: Path) -> str:
    from edgevqa.export.families import FAMILIES

    config = read_json(folder / "config.json", what="a model folder holds config.json and its weights")
    model_type = config.get("model_type")
    for name, entry in FAMILIES.items():
        if model_type in entry.model_types:
            return name
    known = ", ".join(f"{name} ({entry.summary})" for name, entry in FAMILIES.items())
    raise InputError(
        f"{folder / 'config.json'} has model_type '{model_type}', which no family exports. Known families: {known}. "
        "CONTRIBUTING.md, 'A new model family', shows how to add one."
    )


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` tells the user what was expected."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {what}.")
    refuse_pointer(path)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a JSON object: {what}.")
    return loaded
