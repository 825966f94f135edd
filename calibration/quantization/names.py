"""What a quantised variant is called: `<precision>-<numerics>`, and after it what sets its recipe apart from the usual one.

    int8-u8-fp32                      every graph quantised, weights and activations: what `--precision int8` means
    int8-u8-fp32-decoder-w4           the decoder with INT4 weights alone; -encoder-w8: the encoders with INT8 ones
    int8-u8-fp32-decoder-w4b64        the same in blocks of 64 inputs (32 goes unsaid); w8c: one scale a whole column
    int8-u8-fp32-decoder-high         the decoder left float
    int8-u8-fp32-decoder-w4-only      nothing else quantised: the bundle had no calibration
    int8-u8-fp32-residual             residual adds quantised too

How ranges are chosen (`--method`, `--no-smooth`, `--bias-correction`) is no part of the name: quantising again replaces.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edgevqa.calibration.quantization.recipe import BLOCKS_OPSET, USUAL_BLOCK, Recipe, WeightBits
from edgevqa.runtime.manifest import Precision

DECODER = "language_decoder"
ENCODERS = ("question_encoder", "language_encoder")
_PARTS = {"decoder": (DECODER,), "encoder": ENCODERS}


def variant_name(precision: Precision, recipe: Recipe, graphs: Collection[str]) -> str:
    """The name of the variant that this recipe makes of a bundle with these graphs. FP8's numerics say FP8 already."""
    stem = recipe.numerics if precision == "fp8" else f"{precision}-{recipe.numerics}"
    return "-".join((stem, *_apart(recipe, graphs)))


def _apart(recipe: Recipe, graphs: Collection[str]) -> Iterator[str]:
    """What the recipe does otherwise than usual, in a fixed order."""
    only = bool(recipe.weight_only) and set(graphs) == {*recipe.weight_only, *recipe.high_graphs}
    for part, names in _PARTS.items():
        alone: list[WeightBits] = [recipe.weight_only[name] for name in names if name in recipe.weight_only]
        if alone:
            yield f"{part}-{_weights(recipe, alone[0])}"
        elif not only and any(name in recipe.high_graphs for name in names):
            yield f"{part}-high"
    if only:
        yield "only"
    if recipe.residual:
        yield "residual"


def _weights(recipe: Recipe, bits: WeightBits) -> str:
    """`w4`: four bits in the usual blocks."""
    stem = f"w{bits.removeprefix('int')}"
    if bits == "int8" and recipe.max_opset < BLOCKS_OPSET:
        return f"{stem}c"
    return stem if recipe.block_size == USUAL_BLOCK else f"{stem}b{recipe.block_size}"
