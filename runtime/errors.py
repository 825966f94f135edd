"""The exception tree of edgevqa, and the exit code that the command line gives for each branch.

EdgeVQAError (exit 70)               a backend failed, or a session was used wrongly: not the input's fault
├── CheckFailed (exit 1)             a check or gate failed: parity, accuracy budget, `verify`
│   └── NotFiniteError               a graph gave NaN or infinity where a number was needed
├── InputError (exit 2)              wrong usage or input
│   ├── ImageError                   a picture that cannot be read or is out of bounds
│   ├── QuestionError                a question that cannot be asked
│   ├── ConfigError                  a configuration with unknown, missing or impossible values
│   ├── CheckpointError              a checkpoint that is foreign, incomplete or unreadable
│   └── BundleError                  a bundle that is missing, corrupt, foreign or of a newer version
└── UnavailableError (exit 3)        something needed is not installed or not on this machine
    ├── MissingExtraError            a Python package; the message gives the pip command that adds it
    └── NetworkError                 a hub id that cannot be fetched
"""

from __future__ import annotations

import errno
import importlib
from types import ModuleType

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""`errno` of an `OSError` where there is no room for more, or a limit of the user's."""


class EdgeVQAError(Exception):
    """Base of every error that edgevqa raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h; an unexpected exception ends with it too


class CheckFailed(EdgeVQAError):
    """A check or gate failed: parity, an accuracy budget, `--fail-if`, `bundle verify`."""

    exit_code = 1


class NotFiniteError(CheckFailed):
    """A graph gave NaN or infinity where a number was needed; `what` it gave, as in "logits"."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The model gave {what} that are not finite numbers.")


class InputError(EdgeVQAError):
    """The caller gave something that cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """A picture that cannot be read, or whose size is out of bounds."""


class QuestionError(InputError):
    """A question that cannot be asked."""


class ConfigError(InputError):
    """A configuration with unknown, missing or impossible values."""


class CheckpointError(InputError):
    """A checkpoint that is foreign, incomplete or unreadable."""


class BundleError(InputError):
    """A bundle that is missing, corrupt, foreign or written by a newer version."""


class UnavailableError(EdgeVQAError):
    """Something needed is not installed or not on this machine."""

    exit_code = 3


def kind_of(exit_code: int) -> type[EdgeVQAError]:
    """The branch of the tree that ends with `exit_code`: for errors that come from another process."""
    branches = (CheckFailed, InputError, UnavailableError)
    return next((kind for kind in branches if kind.exit_code == exit_code), EdgeVQAError)


class NetworkError(UnavailableError):
    """A hub id whose files can neither be fetched nor found in the local cache."""


class MissingExtraError(UnavailableError):
    """A Python package that an extra of edgevqa would install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'edgevqa[{extra}]'"
        )
        self.package = package
        self.extra = extra


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the pip command that adds it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(package, extra, purpose) from error
