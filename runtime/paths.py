"""Paths that are safe to use: inside a bundle, and in the user's cache."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from platformdirs import user_cache_dir

from edgevqa.runtime.errors import BundleError

CACHE_VARIABLE = "EDGEVQA_CACHE_DIR"


def cache_dir() -> Path:
    """The folder for what this machine learns: `EDGEVQA_CACHE_DIR` where set, else the user's cache. May not exist."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("edgevqa", appauthor=False))


def check_relative(name: str, *, where: str) -> None:
    """Raise `BundleError` unless `name` is a plain POSIX path below the bundle; `where` says who names it.

    Refused: empty, absolute (POSIX or Windows), `.`, `..` and empty components, backslashes, control characters.
    """
    parts = name.split("/")
    plain = (
        name.isprintable()
        and "\\" not in name
        and not any(part in ("", ".", "..") for part in parts)
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).drive
    )
    if not plain:
        raise BundleError(
            f"{where} names the file {name!r}; expected a path inside the bundle, such as 'graphs/fp32/x.onnx'. "
            "Do not use this bundle: get it again from its maker."
        )


def confined(root: Path, name: str, *, where: str) -> Path:
    """The path of file `name` below `root`; links are followed and must stay inside. It need not exist.

    Raises `BundleError` for a name or a link that leaves the bundle.
    """
    check_relative(name, where=where)
    path = root / name
    base = Path(os.path.realpath(root))
    real = Path(os.path.realpath(path))  # unlike Path.resolve, gives links that go in a circle no error of its own
    if real != base and base not in real.parents:
        raise BundleError(
            f"{path} is a link that leaves the bundle (to {real}); expected a file inside it. "
            "Copy the bundle with its files in place of links, for example with 'cp -rL'."
        )
    return path


def is_regular(path: Path) -> bool:
    """Whether `path` is a regular file (links followed): no folder, device or pipe, and within reach."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
