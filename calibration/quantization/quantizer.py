"""Quantise the graphs of a bundle: prepared once from what was observed, then written with any set of layers high."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgevqa.calibration.casting.boundaries import plan_boundaries
from edgevqa.calibration.casting.cast import CastReport, cast_graph
from edgevqa.calibration.casting.plan import CastOptions
from edgevqa.calibration.casting.tables import store_tables
from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.linears import Linear, find_linears
from edgevqa.calibration.observation.statistics import VARIANT, GraphStatistics, origin
from edgevqa.calibration.quantization.blocks import FloatGraph
from edgevqa.calibration.quantization.formats import FORMATS
from edgevqa.calibration.quantization.plan import LayerPlan, make_plan
from edgevqa.calibration.quantization.qdq import Placer
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.quantization.residuals import ResidualPoint, find_residuals, judge_residuals, place_residuals
from edgevqa.calibration.quantization.smoothed import smoothed_absmax
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import GraphSpec, Precision, VariantSpec

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A Linear layer, what quantising it costs, and how.

    `name` is `<graph>/<linear.name>`. `macs` are multiplications an answer, averaged over the calibration set.
    `local_error` is ||y - yq|| / ||y|| on captured rows. `reason` tells why it stays high whatever is asked (None: it
    may be quantised). `shared` names the layers of other graphs with the same weight: stored once while both are
    quantised, or both high.
    """

    name: str
    graph: str
    parameters: int
    macs: float
    head: bool
    local_error: float | None
    method: str | None
    alpha: float | None
    reason: str | None
    shared: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WrittenGraph:
    """What was written: layer names quantised and kept high, and what FP16 casting left in FP32 (None: no cast)."""

    path: Path
    model: ir.Model
    quantised: tuple[str, ...]
    high: tuple[str, ...]
    cast: CastReport | None
    residuals: tuple[ResidualPoint, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its tensors; those that other graphs hold too count again."""
        values = self.model.graph.initializers.values()
        return sum(value.const_value.nbytes for value in values if value.const_value is not None)


class Quantizer:
    """The float graphs of `bundle` with everything decided but the layers that stay high."""

    def __init__(
        self, bundle: Bundle, statistics: Mapping[str, GraphStatistics], recipe: Recipe, *, report: Report | None = None
    ) -> None:
        """Chooses smoothing, ranges and weight scales from the captured rows (minutes for a ViT-L on two cores)."""
        self.recipe = recipe
        self._origin = origin(bundle, statistics)
        self.format = FORMATS[recipe.numerics]
        self._bundle = bundle
        self._paths = {name: bundle.graph_path(VARIANT, name) for name in bundle.variant(VARIANT).graphs}
        self._floats = {
            name: FloatGraph.of(name, load_graph(path), statistics.get(name)) for name, path in self._paths.items()
        }
        self._plan = make_plan(self._floats, recipe, report=report)
        self._absmax = {
            name: smoothed_absmax(graph, self._plan.smoothings[name]) for name, graph in self._floats.items()
        }

    @property
    def graphs(self) -> list[str]:
        """The bundle's graphs, in manifest order."""
        return list(self._paths)

    def layers(self) -> list[LayerCost]:
        """Every Linear layer, in the order in which they run; the vocabulary head too."""
        return [self._cost(plan) for plan in self._plan.layers.values()]

    def always_high(self) -> dict[str, str]:
        """Layers that stay high whatever is asked, each with the reason."""
        return {name: plan.reason for name, plan in self._plan.layers.items() if plan.reason is not None}

    def inside_fp32(self) -> Quantizer:
        """The same layers with the same scales inside FP32, which every backend runs as it is written."""
        twin = copy.copy(self)
        twin.format = replace(self.format, around="fp32")
        return twin

    def write_graph(self, weights: SharedWeights, path: Path, graph: str, high: Collection[str] = ()) -> WrittenGraph:
        """Write one graph, with the layers named in `high` (and those always high) not quantised.

        Weights go to `weights`, which lies in `path`'s folder and may serve any number of candidates: equal tensors
        are stored once, and what was written can be loaded at once, while `weights` is still open.
        """
        model = load_graph(self._paths[graph])
        self._plan.smoothings[graph].apply(model.graph)
        placer = Placer(model, max_opset=self.recipe.max_opset)
        residuals = find_residuals(model.graph) if self.recipe.residual else []
        quantised: list[str] = []
        kept: list[str] = []
        for linear in find_linears(model.graph).values():
            plan = self._plan.layers[f"{graph}/{linear.name}"]
            chosen = plan.reason is None and plan.layer.name not in high
            (quantised if chosen else kept).append(plan.layer.name)
            if chosen:
                self._place(placer, linear, plan)
        points = judge_residuals(residuals, self._floats[graph].statistics, self.format, self.recipe.max_residual_error)
        place_residuals(placer, residuals, points)
        placer.finish()
        cast = self._lower(model, graph)
        weights.write_graph(model, path)
        return WrittenGraph(
            path=path, model=model, quantised=tuple(quantised), high=tuple(kept), cast=cast, residuals=tuple(points)
        )

    def write(
        self, writer: BundleWriter, variant: str, precision: Precision, high: Collection[str] = ()
    ) -> tuple[VariantSpec, list[WrittenGraph]]:
        """Write all graphs of a variant into `writer`; the entry (without a report) and what was written."""
        folder = f"graphs/{variant}"
        graphs: dict[str, GraphSpec] = {}
        written: list[WrittenGraph] = []
        with SharedWeights(writer.path(f"{folder}/weights.data")) as weights:
            for name in self.graphs:
                relative = f"{folder}/{name}.onnx"
                written.append(self.write_graph(weights, writer.path(relative), name, high))
                graphs[name] = graph_spec(written[-1].model, writer.describe(relative))
        spec = VariantSpec(
            precision=precision,
            numerics=self.recipe.numerics,
            weights=writer.describe(f"{folder}/weights.data"),
            graphs=graphs,
            recipe={**self._origin, **self.recipe.to_json(), "high": sorted(high)},
        )
        return spec, written

    def _place(self, placer: Placer, linear: Linear, plan: LayerPlan) -> None:
        read = functools.partial(self._plan.smoothings[plan.layer.graph].weight, plan.layer.linear)
        if plan.scales is None:
            size = self.recipe.block_of(plan.layer.graph, linear.in_features)
            placer.quantise_weight(linear, read, size, self.recipe.weight_only[plan.layer.graph])
            return
        inputs = [(tensor[1], self._plan.scales[tensor]) for tensor in plan.layer.tensors]
        placer.quantise_linear(linear, read(), plan.scales, inputs)
        if plan.corrections is not None:
            placer.add_bias(linear, plan.corrections)

    def _lower(self, model: ir.Model, graph: str) -> CastReport | None:
        """Cast to FP16 where the numerics say so; else store the tables alone as FP16."""
        if self.format.around == "fp16":
            models = {name: found.model for name, found in self._floats.items()}
            boundaries = plan_boundaries(models, self._absmax)
            return cast_graph(model, self._absmax[graph], CastOptions(boundaries=boundaries))
        if self.recipe.tables == "fp16":
            store_tables(model)
        return None

    def _cost(self, plan: LayerPlan) -> LayerCost:
        layer = plan.layer
        parameters = layer.linear.in_features * layer.linear.out_features
        observed = [self._floats[graph].statistics.inputs.get(tensor) for graph, tensor in layer.tensors]
        rows = sum(statistics.row_count for statistics in observed if statistics is not None)
        calibration = self._bundle.manifest.calibration
        return LayerCost(
            name=layer.name,
            graph=layer.graph,
            parameters=parameters,
            macs=parameters * rows / max(calibration.samples if calibration else 1, 1),
            head=layer.linear.head,
            local_error=None if plan.error is None else plan.error.relative,
            method=plan.method,
            alpha=plan.alpha,
            reason=plan.reason,
            shared=tuple(
                other.layer.name
                for other in self._plan.layers.values()
                if other.layer.key == layer.key and other is not plan
            ),
        )
