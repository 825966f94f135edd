"""Find a model's files: a folder under a root, or a hub id whose small files are fetched."""

from __future__ import annotations

import re
from pathlib import Path

from edgevqa.runtime.errors import InputError, NetworkError

SIDE_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
OLD_WEIGHT_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_folder(name: str, *, root: Path, weights: bool = False, revision: str | None = None) -> Path:
    """The folder that `name` means: itself if absolute, `root/name` if that exists, else a hub id.

    Raises `InputError` when `name` is neither, `NetworkError` when the hub id cannot be had.
    """
    local = root / name
    if local.is_dir():
        return local
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"'{name}' is neither a folder under {root} nor a hub id. Give --root or correct the name.")
    folder = _fetch(name, revision, [*SIDE_FILES, *(WEIGHT_FILES if weights else ())], root)
    if weights and not any(folder.glob("*.safetensors")):
        return _fetch(name, revision, [*SIDE_FILES, *OLD_WEIGHT_FILES], root)
    return folder


def _fetch(name: str, revision: str | None, patterns: list[str], root: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise NetworkError(
            f"'{name}' is not a folder under {root}, and the hub did not give it ({type(error).__name__}: {reason}). "
            f"Check the name and the network, or put the model's folder at {root / name}."
        ) from error
