"""Checks of a graph's inputs against its specification, the same for every backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import TensorSpec


def describe(spec: TensorSpec) -> str:
    """A specification as people read it: `pixel_values float32 (image, 3, 56, 56)`."""
    return f"{spec.name} {spec.dtype} ({', '.join(str(axis) for axis in spec.shape)})"


def check_names(graph: str, given: Iterable[str], expected: Sequence[TensorSpec]) -> None:
    """Raise `InputError` that lists the missing and the unexpected names, unless they are exactly the expected ones."""
    names = set(given)
    known = {spec.name for spec in expected}
    missing = [describe(spec) for spec in expected if spec.name not in names]
    unexpected = sorted(names - known)
    if not missing and not unexpected:
        return
    parts = [f"missing: {'; '.join(missing)}"] if missing else []
    if unexpected:
        parts.append(f"unknown: {', '.join(unexpected)}; it takes {', '.join(spec.name for spec in expected)}")
    raise InputError(f"Wrong inputs for graph '{graph}': {'. '.join(parts)}.")


def check_tensor(graph: str, spec: TensorSpec, dtype: str, shape: Sequence[int], axes: dict[str, int]) -> None:
    """Raise `InputError` unless dtype, rank, fixed axes and named axes fit.

    `axes` collects the sizes of the named axes seen so far: one name is one size throughout a graph's inputs.
    """
    if dtype != spec.dtype:
        raise InputError(f"Graph '{graph}' expects {describe(spec)}, but got {dtype} {tuple(shape)}. Cast it.")
    fits = len(shape) == len(spec.shape) and all(
        size == (axis if isinstance(axis, int) else axes.setdefault(axis, size))
        for size, axis in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        known = {axis: axes[axis] for axis in spec.shape if isinstance(axis, str) and axis in axes}
        where = f" with {', '.join(f'{axis} = {size}' for axis, size in known.items())}" if known else ""
        raise InputError(f"Graph '{graph}' expects {describe(spec)}{where}, but got shape {tuple(shape)}.")


def check_inputs(graph: str, specs: Sequence[TensorSpec], given: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Check names, then every tensor's (dtype name, shape). Raises `InputError`."""
    check_names(graph, given, specs)
    axes: dict[str, int] = {}
    for spec in specs:
        dtype, shape = given[spec.name]
        check_tensor(graph, spec, dtype, shape, axes)
