"""What every quantiser of another project gets and gives: one float32 graph, captured inputs, one quantised ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.quantization.captured import Feed


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quantise `source`, a float32 ONNX file that holds its weights, and write `target`.

    `module` has a function `quantize(task, feeds, **options)`. `feeds` is a file of what the graph got on calibration
    samples, `errors` one for the reason of a failure, `scratch` an empty folder. `linears` are the names of the nodes that
    multiply by a Linear's weight, without those that give the vocabulary's logits; `others` are all other nodes.
    """

    graph: str
    source: str
    target: str
    feeds: str
    errors: str
    scratch: str
    linears: list[str]
    others: list[str]
    module: str
    options: dict[str, Any]


def save_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Write captured inputs; input `name` of run 3 is the member `3/name`."""
    arrays = {f"{number}/{name}": array for number, feed in enumerate(feeds) for name, array in feed.items()}
    np.savez(path, allow_pickle=False, **arrays)


def load_feeds(path: Path) -> list[Feed]:
    """What `save_feeds` wrote."""
    feeds: dict[int, Feed] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = file[key]
    return [feeds[number] for number in sorted(feeds)]
