"""Optimization profiles: which one holds the shapes, and what to build where none does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
_OPTIONS = {
    "words": "--max-question",
    "capacity": "--max-new-tokens",
    "length": "--max-prompt",
    "slots": "--max-prompt",
}
_WITH_WORDS = ("keys", "positions")  # the image's tokens and the question's words together


class EngineInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine takes. `specs` are the manifest's inputs, with the names of their axes."""

    graph: str
    target: str
    specs: list[TensorSpec]
    profiles: list[Profile]


def choose_profile(engine: EngineInputs, shapes: Shapes) -> int:
    """The number of the tightest profile that holds the shapes.

    Raises `InputError` naming the axis, what it may be, and the `edgevqa build` that would widen it.
    """
    holding = [number for number, profile in enumerate(engine.profiles) if _holds(profile, shapes)]
    if not holding:
        raise InputError(_refusal(engine, shapes))
    return min(holding, key=lambda number: (_most_elements(engine.profiles[number]), number))


def fixed_capacity(specs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> list[TensorSpec]:
    """The inputs, with the cache's capacity as a number where the engine has one size of it."""
    return [_fixed(spec, profiles) for spec in specs]


def _fixed(spec: TensorSpec, profiles: Sequence[Profile]) -> TensorSpec:
    if "capacity" not in spec.shape:
        return spec
    axis = spec.shape.index("capacity")
    sizes = {side[axis] for profile in profiles for side in (profile[spec.name].min, profile[spec.name].max)}
    if len(sizes) != 1:
        return spec
    return msgspec.structs.replace(spec, shape=[*spec.shape[:axis], sizes.pop(), *spec.shape[axis + 1 :]])


def _holds(profile: Profile, shapes: Shapes) -> bool:
    return all(
        len(shapes[name]) == len(sides.min)
        and all(low <= size <= high for low, size, high in zip(sides.min, shapes[name], sides.max, strict=True))
        for name, sides in profile.items()
    )


def _most_elements(profile: Profile) -> int:
    return sum(math.prod(sides.max) for sides in profile.values())


def _refusal(engine: EngineInputs, shapes: Shapes) -> str:
    """Why no profile holds the shapes: the first axis that none of them allows, else the first that the widest lacks."""
    widest = max(engine.profiles, key=_most_elements)
    for profiles in (engine.profiles, [widest]):
        for spec in engine.specs:
            for axis, size in enumerate(shapes[spec.name]):
                ranges = [(profile[spec.name].min[axis], profile[spec.name].max[axis]) for profile in profiles]
                if not any(low <= size <= high for low, high in ranges):
                    return _tell(engine, spec, axis, size, sorted(set(ranges)))
    return f"No profile of the engine of graph '{engine.graph}' holds the shapes {dict(shapes)}."


def _tell(engine: EngineInputs, spec: TensorSpec, axis: int, size: int, ranges: list[tuple[int, int]]) -> str:
    name = spec.shape[axis] if isinstance(spec.shape[axis], str) else f"axis {axis}"
    allowed = " or ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
    more = size - max(high for _, high in ranges)
    return (
        f"The engine of graph '{engine.graph}' takes {name} of {allowed} ({spec.name}), but got {size}. "
        f"Ask for less, or build for it: edgevqa build BUNDLE --target {engine.target} {_option(spec, str(name), size, more)}"
    )


def _option(spec: TensorSpec, axis: str, size: int, more: int) -> str:
    if spec.name == "decoder_input_ids" and axis == "length":  # a caption's prompt is a question, after the start token
        return f"--max-question {size - 1}"
    if axis in _WITH_WORDS:
        return f"--max-question N, with {more} more than now" if more > 0 else "--max-question N"
    if axis in ("batch", "image"):
        return f"--batch 1,{size}" if size > 1 else "--batch 1"
    if axis in _OPTIONS:
        return f"{_OPTIONS[axis]} {size}"
    return f"--axis {axis}=1:{size}:{size}"
