"""Optimization profiles from the manifest's axes: which shapes each engine takes, and is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import GraphSpec, Manifest, TensorSpec

Range = tuple[int, int, int]
USUAL_QUESTION = 12  # tokens of a usual question: what the middle of a profile is tuned for


def axis_ranges(manifest: Manifest, graphs: Mapping[str, GraphSpec], options: BuildOptions) -> list[dict[str, Range]]:
    """Least, usual and most of every axis, one dictionary a profile: one row first, then the batches.

    `keys` are the image's tokens and the question's words. The cache's `capacity` has one size: its slots are written
    in place. Raises `InputError` where an option is beyond what the model takes.
    """
    words = _words(manifest, options)
    shared: dict[str, Range] = {"words": words}
    tokens = _image_tokens(graphs)
    if tokens is not None:
        shared["keys"] = (tokens + words[0], tokens + words[1], tokens + words[2])
    slots = options.max_new_tokens or (manifest.generation.max_new_tokens if manifest.generation else 1)
    shared["capacity"] = (slots, slots, slots)
    sizes = sorted(set(options.batch))
    profiles: list[dict[str, Range]] = []
    if 1 in sizes:
        profiles.append({**shared, "batch": (1, 1, 1), "image": (1, 1, 1), **options.axes})
    if sizes[-1] > 1:
        usual = sizes[len(sizes) // 2]
        batch = (1, usual, sizes[-1])
        profiles.append({**shared, "batch": batch, "image": batch, **options.axes})
    return profiles


def graph_profiles(name: str, graph: GraphSpec, ranges: Sequence[Mapping[str, Range]]) -> list[Profile]:
    """One graph's profiles, each once. Raises `InputError` naming an axis without a range."""
    found: list[Profile] = []
    for axes in ranges:
        profile = {tensor.name: _shape_range(name, tensor, axes) for tensor in graph.inputs}
        if profile not in found:
            found.append(profile)
    return found


def _shape_range(graph: str, tensor: TensorSpec, axes: Mapping[str, Range]) -> ShapeRange:
    sides: list[Range] = []
    for axis in tensor.shape:
        if isinstance(axis, int):
            sides.append((axis, axis, axis))
        elif axis in axes:
            sides.append(axes[axis])
        else:
            raise InputError(
                f"Graph '{graph}' has the axis '{axis}' ({tensor.name}), whose sizes are not known. "
                f"Give them: --axis {axis}=LEAST:USUAL:MOST"
            )
    return ShapeRange(min=[a for a, _, _ in sides], opt=[b for _, b, _ in sides], max=[c for _, _, c in sides])


def _words(manifest: Manifest, options: BuildOptions) -> Range:
    most = manifest.text.max_tokens if manifest.text else 1
    asked = options.max_question or most
    if asked > most:
        raise InputError(f"--max-question {asked}: the model takes questions of at most {most} tokens.")
    return 1, min(USUAL_QUESTION, asked), asked


def _image_tokens(graphs: Mapping[str, GraphSpec]) -> int | None:
    """Tokens of a picture in the language model, where a graph takes them."""
    for graph in graphs.values():
        for tensor in graph.inputs:
            if tensor.name == "image_embeds" and len(tensor.shape) == 3 and isinstance(tensor.shape[1], int):
                return tensor.shape[1]
    return None
