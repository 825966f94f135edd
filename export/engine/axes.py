"""What `--axis` may be given: the axes that no other option sets, within what the model takes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges
from edgevqa.runtime.axes import Range
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import GraphSpec, Manifest

_OPTIONS = {
    "batch": "--batch",
    "image": "--batch",
    "words": "--max-question",
    "keys": "--max-question",
    "capacity": "--max-new-tokens",
    "slots": "--max-prompt",
}


def check_axes(
    manifest: Manifest, graphs: Mapping[str, GraphSpec], options: BuildOptions, *, template: int | None = None
) -> None:
    """Raise `InputError` for an axis that no graph has, that another option sets, or for more than a picture brings.

    Where a DLA was asked for, which takes one shape, an axis that others set may be held at one size within them.
    """
    if not options.axes:
        return
    has = {
        axis for graph in graphs.values() for tensor in graph.inputs for axis in tensor.shape if isinstance(axis, str)
    }
    unknown = sorted(set(options.axes) - has)
    if unknown:
        raise InputError(
            f"--axis {unknown[0]}: no graph has that axis. The axes are {', '.join(sorted(has)) or 'none'}."
        )
    pictures = {} if manifest.image is None else manifest.image.axes
    plain = axis_ranges(manifest, graphs, msgspec.structs.replace(options, axes={}), template=template)
    for name, sides in options.axes.items():
        if name in pictures:
            _check_pictures(name, sides, pictures[name])
        elif name in plain[0] and not _is_held(sides, [each[name] for each in plain], options):
            raise InputError(f"--axis {name}: {_instead(name, has)} sets it. Leave --axis {name} out.")


def _is_held(sides: Range, own: list[Range], options: BuildOptions) -> bool:
    within = min(low for low, _, _ in own) <= sides[0] and sides[2] <= max(high for _, _, high in own)
    return options.dla_core is not None and sides[0] == sides[2] and within


def _instead(name: str, has: set[str]) -> str:
    """The option that sets an axis."""
    if name == "length":
        return "--max-prompt" if "slots" in has else "--max-question"
    if name == "capacity" and "slots" in has:
        return "--max-new-tokens with --max-prompt"
    return _OPTIONS.get(name, "the build itself")


def _check_pictures(name: str, sides: Range, own: Range) -> None:
    if sides[2] > own[2]:
        raise InputError(
            f"--axis {name}={':'.join(map(str, sides))}: a picture brings {own[0]} to {own[2]}; expected at most {own[2]}."
        )
