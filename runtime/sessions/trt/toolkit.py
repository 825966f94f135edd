"""The TensorRT that is installed: which module runs engines of a flavour, its version, and what it says."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import msgspec

from edgevqa.runtime.errors import MissingExtraError, UnavailableError
from edgevqa.runtime.plans import Version, parse_version
from edgevqa.runtime.sessions.trt.options import RuntimeKind
from edgevqa.runtime.targets import Flavour

MODULES: dict[RuntimeKind, str] = {"full": "tensorrt", "lean": "tensorrt_lean", "dispatch": "tensorrt_dispatch"}
_HINT = (
    "On a Jetson it comes with JetPack: make the environment with 'python3 -m venv --system-site-packages'. "
    "Elsewhere: pip install tensorrt, in the version that built the engines."
)


class Toolkit(msgspec.Struct, frozen=True, kw_only=True):
    """An imported TensorRT. `kind` lean and dispatch run version-compatible engines alone; `logger` keeps its errors."""

    module: Any
    flavour: Flavour
    kind: RuntimeKind
    version: Version
    logger: Any

    def complaint(self) -> str:
        """The last error that it told, and forget those."""
        errors: list[str] = self.logger.errors
        said = errors[-1] if errors else "it gave no reason"
        errors.clear()
        return said.rstrip(".")


def load_toolkit(flavour: Flavour, kind: RuntimeKind = "auto") -> Toolkit:
    """Import what runs engines of `flavour`; "auto" takes the first that is installed of full, lean and dispatch.

    Raises `UnavailableError` that says how to install it.
    """
    if flavour == "tensorrt-rtx":
        return _toolkit(_import("tensorrt_rtx", flavour), flavour, "full")
    for each in MODULES if kind == "auto" else (kind,):
        try:
            return _toolkit(_import(MODULES[each], flavour), flavour, each)
        except ModuleNotFoundError:
            continue
    wanted = "TensorRT" if kind == "auto" else f"TensorRT's {kind} runtime ({MODULES[kind]})"
    raise UnavailableError(f"Running TensorRT engines needs {wanted}, which is not installed. {_HINT}")


def _import(name: str, flavour: Flavour) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if flavour == "tensorrt-rtx":
            raise MissingExtraError(name, "tensorrt-rtx", "Running TensorRT-RTX engines") from error
        raise
    except (ImportError, OSError) as error:
        raise UnavailableError(f"{name} is installed but cannot be loaded: {error}. {_HINT}") from error


def _toolkit(module: Any, flavour: Flavour, kind: RuntimeKind) -> Toolkit:
    version = parse_version(str(module.__version__))
    return Toolkit(module=module, flavour=flavour, kind=kind, version=version, logger=_logger(module))


@functools.cache
def _logger(module: Any) -> Any:
    """One a process: TensorRT keeps the first that it is given."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(" ".join(msg.split()))
                del self.errors[:-20]

    return Logger()
