"""What makes a build take less memory: only what is not done already."""

from __future__ import annotations

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.manifest import Numerics

FEWER = "take one batch size above 1 (--batch 4: 1 to 4 rows)"
_LOWER: dict[Numerics, str] = {
    "fp32": "build the int8 or fp16 variant (--precision)",
    "fp16": "build the int8 variant (--precision)",
    "bf16": "build the int8 variant (--precision)",
}


def smaller_text(options: BuildOptions, numerics: Numerics, *, twice: bool = False) -> str:
    """A sentence with the ways there are; `twice`: the graph's weights are laid out for one row and for more."""
    ways = [FEWER] if twice else []
    if numerics in _LOWER:
        ways.append(_LOWER[numerics])
    if not twice and max(options.batch) > 1:
        ways.append("build for fewer or smaller batches (--batch 1)")
    if options.workspace_bytes is not None:
        ways.append("give a smaller --workspace")
    elif options.row.flavour == "tensorrt":
        ways.append("bound TensorRT's own pool (--workspace 512MB)")
    if options.memory_budget_bytes is not None:
        ways.append("raise --memory-budget")
    ways.append("build on a machine of this kind with more memory")
    text = f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else ways[0]
    return f"{text[0].upper()}{text[1:]}."
