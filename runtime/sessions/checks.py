"""Checks of what a graph is given against its specification, the same for every backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from edgevqa.runtime.errors import EdgeVQAError, InputError
from edgevqa.runtime.manifest import TensorSpec


def describe(spec: TensorSpec) -> str:
    """A specification as people read it: `pixel_values float32 (image, 3, 56, 56)`."""
    return f"{spec.name} {spec.dtype} ({', '.join(str(axis) for axis in spec.shape)})"


def check_names(graph: str, given: Iterable[str], expected: Sequence[TensorSpec]) -> None:
    """Raise `InputError` that lists the missing and the unexpected names, unless they are exactly the expected ones."""
    names = given if isinstance(given, Mapping) else set(given)
    if len(names) == len(expected) and all(spec.name in names for spec in expected):
        return
    names = set(names)
    known = {spec.name for spec in expected}
    missing = [describe(spec) for spec in expected if spec.name not in names]
    unexpected = sorted(names - known)
    if not missing and not unexpected:
        return
    parts = [f"missing: {'; '.join(missing)}"] if missing else []
    if unexpected:
        parts.append(f"unknown: {', '.join(unexpected)}; it takes {', '.join(spec.name for spec in expected)}")
    raise InputError(f"Wrong inputs for graph '{graph}': {'. '.join(parts)}.")


def check_inputs(graph: str, specs: Sequence[TensorSpec], given: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Raise `InputError` unless names, dtypes, ranks, fixed and named axes fit; `given` are dtype names and shapes.

    One named axis has one size throughout a graph's inputs.
    """
    check_names(graph, given, specs)
    axes: dict[str, int] = {}
    for spec in specs:
        dtype, shape = given[spec.name]
        if dtype != spec.dtype:
            raise InputError(f"Graph '{graph}' expects {describe(spec)}, but got {dtype} {tuple(shape)}. Cast it.")
        if not _fits(spec, shape, axes):
            known = {axis: axes[axis] for axis in spec.shape if isinstance(axis, str) and axis in axes}
            where = f" with {', '.join(f'{axis} = {size}' for axis, size in known.items())}" if known else ""
            raise InputError(f"Graph '{graph}' expects {describe(spec)}{where}, but got shape {tuple(shape)}.")


def _fits(spec: TensorSpec, shape: Sequence[int], axes: dict[str, int]) -> bool:
    if len(shape) != len(spec.shape):
        return False
    for size, axis in zip(shape, spec.shape, strict=True):  # a plain loop: this runs for every input of every token
        if size != (axis if isinstance(axis, int) else axes.setdefault(axis, size)):
            return False
    return True


Described: TypeAlias = "Mapping[str, tuple[str, Sequence[int]]]"
"""Dtype name and shape of tensors, by name."""


def check_new_slots(past: Described, new: Described) -> int:
    """How many slots new keys and values have; both mappings are by the cache's names.

    `past` is the cache's, (batch, heads, capacity, head). Raises `EdgeVQAError` for the first that does not fit it, or has
    other slots than the rest.
    """
    slots = {shape[2] for _, shape in new.values() if len(shape) == 4}
    for name, (dtype, (batch, heads, _, head)) in past.items():
        found, shape = new[name]
        if found != dtype or len(slots) != 1 or tuple(shape) != (batch, heads, *slots, head):
            raise EdgeVQAError(
                f"The cache of '{name}' was given {found} {tuple(shape)}; expected {dtype} ({batch}, {heads}, slots, {head}) "
                "with as many slots as all the other keys and values."
            )
    return slots.pop() if slots else 0
