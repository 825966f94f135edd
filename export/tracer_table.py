"""The tracer's table of translations, made once for several graphs."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_table() -> Generator[None, None, None]:
    """While it is open, graphs that are traced share the table that `torch.onnx.export` makes anew for each.

    It is the same for every graph of one opset, and making it looks up each of torch's operators. Where torch keeps it
    elsewhere, nothing is shared.
    """
    try:
        registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        own, make = vars(registry)["from_torchlib"], registry.from_torchlib
    except (ImportError, AttributeError, KeyError):
        yield
        return
    made: dict[Hashable, Any] = {}

    def kept(*args: Any, **named: Any) -> Any:
        key = args, tuple(sorted(named.items()))
        if key not in made:
            made[key] = make(*args, **named)
        return made[key]

    registry.from_torchlib = staticmethod(kept)
    try:
        yield
    finally:
        registry.from_torchlib = own
