"""The report of a quantised variant, `calibration/<variant>.json`: every layer's error, and what stayed high and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from edgevqa.calibration.casting.plan import KeptNode
from edgevqa.calibration.quantization.answer_check import AnswerCheck
from edgevqa.calibration.quantization.quantizer import LayerCost, WrittenGraph
from edgevqa.calibration.search.search import MixedResult
from edgevqa.runtime.manifest import Numerics, Precision

GUARDED = "keeps the accuracy within the budget"


class LayerReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Linear layer. `local_error` is that of its output when it is quantised; `high`: it is not, for the `reason`.

    `macs` are multiplications an answer, `method` chose the range of its inputs, `alpha` is SmoothQuant's (None: left
    as it was).
    """

    name: str
    graph: str
    parameters: int
    macs: float
    local_error: float | None
    method: str | None
    alpha: float | None
    high: bool
    reason: str | None


class ResidualReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stream at a residual add: `error` is the share of a typical channel's variation that rounding takes."""

    graph: str
    add: str
    tensor: str
    error: float | None
    high: bool
    reason: str | None


class GraphTotal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph's layers in numbers; `quantised_macs` is the share (0 to 1) of its Linear layers' work."""

    layers: int
    quantised: int
    high: int
    worst_local_error: float | None
    quantised_macs: float
    size_bytes: int


class VariantReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is known of a variant. `check` is None where no data was given; `search` where nothing was searched.

    `overflow` lists, by graph, the nodes that FP16 casting left in FP32. `float_size_bytes` is the size of fp32.
    """

    variant: str
    precision: Precision
    numerics: Numerics
    recipe: dict[str, Any]
    size_bytes: int
    float_size_bytes: int
    graphs: dict[str, GraphTotal]
    layers: list[LayerReport]
    kept_high: list[LayerReport]
    residuals: list[ResidualReport]
    overflow: dict[str, list[KeptNode]]
    check: AnswerCheck | None
    search: MixedResult | None
    warnings: list[str]

    def encode(self) -> bytes:
        """Indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"


def layer_reports(layers: Sequence[LayerCost], high: Collection[str], why: str) -> list[LayerReport]:
    """The layers' rows; those in `high` that could be quantised stay so because of `why`."""
    return [
        LayerReport(
            name=row.name,
            graph=row.graph,
            parameters=row.parameters,
            macs=row.macs,
            local_error=row.local_error,
            method=row.method,
            alpha=row.alpha,
            high=row.reason is not None or row.name in high,
            reason=row.reason or (why if row.name in high else None),
        )
        for row in layers
    ]


def residual_reports(written: Mapping[str, WrittenGraph]) -> list[ResidualReport]:
    """One row a residual add that was to be quantised."""
    return [
        ResidualReport(
            graph=graph,
            add=point.add,
            tensor=point.tensor,
            error=point.error,
            high=point.reason is not None,
            reason=point.reason,
        )
        for graph, found in written.items()
        for point in found.residuals
    ]


def graph_totals(rows: Sequence[LayerReport], written: Mapping[str, WrittenGraph]) -> dict[str, GraphTotal]:
    """The rows summed by graph."""
    return {name: _total([row for row in rows if row.graph == name], graph) for name, graph in written.items()}


def _total(rows: Sequence[LayerReport], written: WrittenGraph) -> GraphTotal:
    quantised = [row for row in rows if not row.high]
    work = sum(row.macs for row in rows)
    return GraphTotal(
        layers=len(rows),
        quantised=len(quantised),
        high=len(rows) - len(quantised),
        worst_local_error=max((row.local_error for row in quantised if row.local_error is not None), default=None),
        quantised_macs=sum(row.macs for row in quantised) / work if work else 0.0,
        size_bytes=written.size_bytes,
    )
