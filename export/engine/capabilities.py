"""What the hardware computes: the compute capabilities that engines are built for, and DLAs.

A DLA computes in FP16 and INT8 alone, and each of its programs has one shape. Source: NVIDIA's "DLA Supported Layers and
Restrictions" and "Working with DLA" (TensorRT 10 and 11). What a DLA cannot run of a graph that fits, TensorRT gives to the
GPU by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgevqa.export.engine.flavours import Toolkit, readable_capabilities
from edgevqa.export.engine.options import BuildOptions, capability_numbers
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import CheckFailed, InputError
from edgevqa.runtime.manifest import Numerics, VariantSpec

FP8_FROM = (8, 9)
PRODUCTS_FROM = (8, 0)  # TensorRT-RTX 1.7.1 says of 7.5: "FP32 GEMM is not supported"; convolutions and norms it builds
_PRODUCTS = ("MatMul", "Gemm", "Einsum")
_PRODUCT_LAYERS = ("MATRIX_MULTIPLY", "EINSUM", "ATTENTION")


def built_for(options: BuildOptions, numerics: Numerics, toolkit: Toolkit) -> tuple[str, ...]:
    """What TensorRT-RTX builds a variant for; the building process sets these, and engine.json lists them.

    Nothing for TensorRT, which builds for the GPU at hand. Without --compute-capability, those of the target that this
    TensorRT-RTX knows and that compute the variant's numbers. Raises `InputError` where none is left, and for a given one
    that does not.
    """
    if options.row.flavour != "tensorrt-rtx":
        return ()
    given, known = options.compute_capabilities, readable_capabilities(toolkit)
    needed = FP8_FROM if numerics.startswith("fp8") else (0, 0)
    low = [each for each in given if capability_numbers(each) < needed]
    if low:
        raise InputError(
            f"--compute-capability {low[0]}: GPUs before compute capability 8.9 have no FP8. Name 8.9 and up, leave the option "
            "out, or build the int8 or fp16 variant (--precision)."
        )
    wanted = [each for each in given or options.row.compute_capabilities if capability_numbers(each) >= needed]
    found = tuple(each for each in dict.fromkeys(wanted) if each in known)
    if not found or (given and len(found) < len(set(given))):
        raise InputError(
            f"This TensorRT-RTX knows the compute capabilities {', '.join(known)}, and not all of {', '.join(wanted)}. Name "
            "some that it knows with --compute-capability, or install a newer tensorrt-rtx."
        )
    return found


def settled(options: BuildOptions, numerics: Numerics, toolkit: Toolkit) -> BuildOptions:
    """The options with the compute capabilities that are built for named. Raises as `built_for`."""
    return msgspec.structs.replace(options, compute_capabilities=built_for(options, numerics, toolkit))


def check_gpu(options: BuildOptions, variant: str, numerics: Numerics, capability: str | None) -> None:
    """Raise `InputError` where TensorRT would build for a GPU at hand that has no FP8."""
    if options.row.flavour != "tensorrt" or capability is None or not numerics.startswith("fp8"):
        return
    if capability_numbers(capability) < FP8_FROM:
        raise InputError(
            f"Variant '{variant}' is FP8, and the GPU of this machine has compute capability {capability}: GPUs before 8.9 "
            "have no FP8. Build the int8 or fp16 variant (--precision)."
        )


def check_products(capabilities: tuple[str, ...], variant: str, spec: VariantSpec) -> None:
    """Raise `InputError` for a float32 variant with matrix products on a compute capability that takes none."""
    old = _without_products(capabilities)
    if not old or spec.numerics != "fp32":
        return
    for name, graph in spec.graphs.items():
        if any(graph.nodes.get(kind) for kind in _PRODUCTS):
            raise InputError(
                f"--compute-capability {old[0]}: it takes no FP32 matrix product, and graph '{name}' of variant '{variant}' "
                f"has some. Build the fp16 or int8 variant (--precision fp16), or leave {old[0]} out."
            )


def check_network(capabilities: tuple[str, ...], graph: str, network: Any, float32: Any) -> None:
    """Raise `CheckFailed` that names a layer of a parsed graph which a compute capability does not take."""
    old = _without_products(capabilities)
    if not old:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type.name in _PRODUCT_LAYERS and layer.get_output(0).dtype == float32:
            raise CheckFailed(
                f"Graph '{graph}' keeps the FP32 product '{layer.name}', and compute capability {old[0]} takes none. Leave "
                f"{old[0]} out (--compute-capability 8.0), or build a variant that keeps no product in FP32 (--precision)."
            )


def _without_products(capabilities: tuple[str, ...]) -> list[str]:
    return [each for each in capabilities if capability_numbers(each) < PRODUCTS_FROM]


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
