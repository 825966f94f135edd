"""How much memory a build will take, said before it starts."""

from __future__ import annotations

from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.manifest import GraphSpec, Numerics

# Bytes a parameter as the builder holds it: its file, the parsed network, the kernels' layout and the plan together.
# TensorRT-RTX 1.7.1 took 4.5 GB for a ViT-L/14-336 of 1.2 GB in FP32 (15 bytes a parameter) and 1.6 GB in S8 Q/DQ.
BYTES_PER_PARAMETER: dict[Numerics, float] = {
    "fp32": 15.0,
    "fp16": 9.0,
    "bf16": 9.0,
    "s8-fp16": 5.0,
    "s8-fp32": 5.0,
    "u8-fp32": 5.0,
    "fp8-fp16": 5.0,
}
BASE_BYTES = 450_000_000  # the libraries themselves


def estimate_bytes(graph: GraphSpec, numerics: Numerics) -> int:
    """About how much memory building the graph takes."""
    return BASE_BYTES + int(graph.parameters * BYTES_PER_PARAMETER[numerics])


def check_budget(graphs: dict[str, GraphSpec], numerics: Numerics, budget_bytes: int | None) -> tuple[str, int]:
    """The graph that takes most and how much. Raises `CheckFailed` where that is beyond the budget."""
    name = max(graphs, key=lambda each: graphs[each].parameters)
    needed = estimate_bytes(graphs[name], numerics)
    if budget_bytes is not None and needed > budget_bytes:
        raise CheckFailed(
            f"Building graph '{name}' takes about {needed / 1e6:,.0f} MB; --memory-budget is {budget_bytes / 1e6:,.0f} MB. "
            "Build the int8 or fp16 variant (--precision), raise the budget, or build on a larger machine of this kind."
        )
    return name, needed
