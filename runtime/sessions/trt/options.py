"""The provider options of the TensorRT backends: read, checked, and refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edgevqa.runtime.errors import ConfigError, InputError

RuntimeKind = Literal["auto", "full", "lean", "dispatch"]
_KINDS: tuple[RuntimeKind, ...] = ("auto", "full", "lean", "dispatch")


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How engines are run.

    `target` names the engine set, None takes the one that fits best. `device` is the GPU's number. `cuda_graphs` replays
    what was launched before for the same shapes, `graph_cache` times (shapes) at most for each graph. `runtime` is which
    of TensorRT's runtimes is used, and `runtime_library` the lean library for engines that do not carry theirs. An engine
    that carries its runtime is a program: `allow_engine_code` lets it run. `mapped_inputs` lets the GPU read inputs from
    host memory, where both share it; None asks the GPU.
    """

    target: str | None = None
    device: int = 0
    cuda_graphs: bool = True
    graph_cache: int = 8
    runtime: RuntimeKind = "auto"
    runtime_library: Path | None = None
    allow_engine_code: bool = False
    mapped_inputs: bool | None = None


def read_options(given: Mapping[str, str]) -> EngineOptions:
    """Options from strings. Raises `ConfigError` naming the option, what was given and what is expected."""
    unknown = sorted(set(given) - set(_READERS))
    if unknown:
        raise ConfigError(f"The TensorRT backends have no option {', '.join(unknown)}; expected {', '.join(_READERS)}.")
    values = {name: _READERS[name](name, text) for name, text in given.items()}
    return msgspec.structs.replace(EngineOptions(), **values)


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise ConfigError(f"Option {name} is {text!r}; expected 0 or 1.")
    return text == "1"


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"Option {name} is {text!r}; expected a whole number of at least 0.")
    return int(text)


def _kind(name: str, text: str) -> RuntimeKind:
    for kind in _KINDS:
        if kind == text:
            return kind
    raise ConfigError(f"Option {name} is {text!r}; expected {', '.join(_KINDS)}.")


def _file(name: str, text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise InputError(f"Option {name} is {text!r}, which is no file; expected TensorRT's lean library.")
    return path


def _text(name: str, text: str) -> str:
    return text


_READERS: dict[str, Callable[[str, str], object]] = {
    "target": _text,
    "device": _count,
    "cuda_graphs": _flag,
    "graph_cache": _count,
    "runtime": _kind,
    "runtime_library": _file,
    "allow_engine_code": _flag,
    "mapped_inputs": _flag,
}
