"""The type of every tensor that passes from graph to graph: one type a name, in all graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgevqa.calibration.casting.plan import LARGEST, MARGIN, CastPrecision
from edgevqa.calibration.linears import HEAD_OUTPUT

HIGH = "float32"
LOW = "float16"


def plan_boundaries(
    models: Mapping[str, ir.Model],
    absmax_by_graph: Mapping[str, Mapping[str, float]],
    *,
    precision: CastPrecision = "fp16",
    margin: float | None = MARGIN,
) -> dict[str, str]:
    """The numpy dtype of every float graph input and output, by name; `absmax_by_graph` is what calibration observed.

    float16 where no graph saw more than 65504 / `margin` of it, else float32 (so too where no graph observed it). What
    the runtime copies from an output to an input (`new_key.N` to `past_key.N`) has one type. The logits stay float32,
    and for bf16 everything does: numpy, which the runtime holds tensors in, has no bfloat16.
    """
    seen: dict[str, list[float]] = {}
    for graph, model in models.items():
        for value in _float_boundaries(model.graph):
            name = value.name or ""
            found = absmax_by_graph.get(graph, {}).get(name)
            seen.setdefault(_slot(name), []).extend([] if found is None else [found])
    names = {value.name or "" for model in models.values() for value in _float_boundaries(model.graph)}
    limit = None if margin is None else LARGEST / margin
    low = {slot for slot, found in seen.items() if limit is None or (found and all(x <= limit for x in found))}
    return {
        name: LOW if precision == "fp16" and name != HEAD_OUTPUT and _slot(name) in low else HIGH
        for name in sorted(names)
    }


def _float_boundaries(graph: ir.Graph) -> Iterator[ir.Value]:
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            yield value


def _slot(name: str) -> str:
    """The cache that an output is written to, or the name itself."""
    for kind in ("key", "value"):
        if name.startswith(f"new_{kind}."):
            return f"past_{kind}.{name.partition('.')[2]}"
    return name
