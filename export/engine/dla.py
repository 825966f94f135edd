"""What may run on a DLA: it computes in FP16 and INT8 alone, and each of its programs has one shape.

Source: NVIDIA's "DLA Supported Layers and Restrictions" and "Working with DLA" (TensorRT 10 and 11). What a DLA cannot run
of a graph that fits, TensorRT gives to the GPU by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import Numerics

_NUMERICS: tuple[Numerics, ...] = ("fp16", "s8-fp16")
_ON_GPU = (
    "built for the GPU alone: its shapes move, and a DLA takes one shape. One --batch and an --axis with three equal sizes "
    "for each other axis that moves would fix them"
)


def check_dla(
    options: BuildOptions, variant: str, numerics: Numerics, profiles: Mapping[str, Sequence[Profile]]
) -> None:
    """Raise `InputError` where nothing of the variant could run on the DLA that was asked for."""
    if options.dla_core is None:
        return
    if numerics not in _NUMERICS:
        raise InputError(
            f"--dla-core {options.dla_core}: a DLA computes in FP16 and INT8 alone; variant '{variant}' is {numerics}. Build "
            "the fp16 or int8 variant (--precision), or leave the option out."
        )
    if not any(is_fixed(each) for each in profiles.values()):
        raise InputError(
            f"--dla-core {options.dla_core}: a DLA takes one shape, and the shapes of every graph here move. Give one size "
            "(--batch 1), or leave the option out: everything then runs on the GPU."
        )


def is_fixed(profiles: Sequence[Profile]) -> bool:
    """Whether a graph has one shape."""
    return len(profiles) == 1 and all(sides.min == sides.max for sides in profiles[0].values())


def graph_options(options: BuildOptions, profiles: Sequence[Profile]) -> tuple[BuildOptions, list[str]]:
    """The options for one graph, without the DLA where its shapes move, and what to know of that."""
    if options.dla_core is None or is_fixed(profiles):
        return options, []
    return msgspec.structs.replace(options, dla_core=None), [_ON_GPU]
