"""How much memory a build will take, said before it starts; engines that hold their weights twice; what takes less memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.manifest import GraphSpec, Numerics

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


class _Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes a parameter: in the plan, while building, and what a second layout of the weights adds to building."""

    plan: float
    building: float
    second: float


# As the builder holds it: its file, the parsed network, the kernels' layout and the plan together. From TensorRT-RTX 1.7.1's
# builds of a CLIP ViT-L/14-336 with T5-base and of a tiny model (benchmarks/results/engine_builds_large.json and
# engine_builds.json): above every recorded peak, by at most 40 %.
_FLOAT = _Bytes(plan=4, building=14, second=9.5)
_HALF = _Bytes(plan=2, building=7, second=4.5)
_INT8 = _Bytes(plan=1.4, building=4, second=3)
_BYTES: dict[Numerics, _Bytes] = {
    "fp32": _FLOAT,
    "fp16": _HALF,
    "bf16": _HALF,
    "s8-fp16": _INT8,
    "s8-fp32": _INT8,
    "u8-fp32": _INT8,
    "fp8-fp16": _INT8,
}
BASE_BYTES = 220_000_000  # the libraries themselves
NODE_BYTES = 600_000  # what is held of an operator besides its weights, kernels for several GPUs among it
_FOLDED = {"Cast", "Constant", "DequantizeLinear", "QuantizeLinear"}  # no kernels of their own
_TOLD_FROM_BYTES = 100_000_000
_TWICE = 1.5  # times the weights, from which an engine holds two layouts of most of them


def estimate_bytes(graph: GraphSpec, numerics: Numerics, profiles: Sequence[Profile] = ()) -> int:
    """About how much memory building the graph takes."""
    each = _BYTES[numerics]
    second = each.second if _lays_out_twice(graph, profiles) else 0
    nodes = sum(count for kind, count in graph.nodes.items() if kind not in _FOLDED)
    return BASE_BYTES + NODE_BYTES * nodes + int(graph.parameters * (each.building + second))


def check_budget(
    graphs: Mapping[str, GraphSpec],
    numerics: Numerics,
    profiles: Mapping[str, Sequence[Profile]],
    options: BuildOptions,
) -> tuple[str, int]:
    """The graph that takes most and how much. Raises `CheckFailed` where that is beyond the budget."""
    takes = {name: estimate_bytes(graph, numerics, profiles[name]) for name, graph in graphs.items()}
    name, budget_bytes = max(takes, key=lambda each: takes[each]), options.memory_budget_bytes
    if budget_bytes is not None and takes[name] > budget_bytes:
        twice = _lays_out_twice(graphs[name], profiles[name])
        raise CheckFailed(
            f"Building graph '{name}' takes about {takes[name] / 1e6:,.0f} MB; --memory-budget is {budget_bytes / 1e6:,.0f} "
            f"MB. {smaller_text(options, numerics, twice=twice)}"
        )
    return name, takes[name]


def twice_text(graph: GraphSpec, numerics: Numerics, profiles: Sequence[Profile], size_bytes: int) -> str | None:
    """What to know where an engine of `size_bytes` holds its weights in two layouts."""
    times = size_bytes / max(graph.parameters * _BYTES[numerics].plan, 1)
    if size_bytes < _TOLD_FROM_BYTES or times < _TWICE or not _lays_out_twice(graph, profiles):
        return None
    return (
        f"the engine is {times:.1f} times its weights: they are laid out for a single row and for more. Where memory is "
        f"short, {FEWER}"
    )


def _lays_out_twice(graph: GraphSpec, profiles: Sequence[Profile]) -> bool:
    """Whether a decoder has a profile of one token of one row, which is a product with a vector, beside others."""
    if not any(tensor.name.startswith("past_key.") for tensor in graph.inputs):
        return False
    single = [all(size == 1 for size in _rows(graph, profile)) for profile in profiles]
    return any(single) and not all(single)


def _rows(graph: GraphSpec, profile: Profile) -> list[int]:
    """The most rows and tokens that a profile takes."""
    sides = [(tensor.name, side) for tensor in graph.inputs for side in enumerate(tensor.shape)]
    return [profile[name].max[place] for name, (place, axis) in sides if axis in ("batch", "length")]
