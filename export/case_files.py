"""Cases on the disk until their graph is compared: the keys and values of a big decoder's prompts take gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevqa.export.spec import Array, Case

SMALL_BYTES = 1 << 16  # below this an array stays in memory


def kept_in_files(cases: Iterable[Case], folder: Path) -> list[Case]:
    """The cases with their large arrays mapped from files of `folder`, each written before the next case is made."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Case] = []
    for case in cases:
        prefix = f"{len(found)}"
        inputs = _filed(case.inputs, folder, f"{prefix}-in")
        found.append(replace(case, inputs=inputs, expected=_filed(case.expected, folder, f"{prefix}-out")))
        del case  # before the next one is made
    return found


def _filed(arrays: Mapping[str, Array], folder: Path, prefix: str) -> dict[str, Array]:
    return {
        name: _mapped(array, folder / f"{prefix}-{number}.npy") for number, (name, array) in enumerate(arrays.items())
    }


def _mapped(array: Array, path: Path) -> Array:
    if array.nbytes < SMALL_BYTES:
        return array
    np.save(path, array)
    mapped: Array = np.load(path, mmap_mode="c")  # as writable as the array was, which ONNX Runtime asks for
    return mapped
