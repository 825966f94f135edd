"""Decide how every Linear layer is quantised: smoothing, ranges and weight scales, by their error on captured rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevqa.calibration.observation.ranges import METHODS
from edgevqa.calibration.observation.statistics import TensorStatistics
from edgevqa.calibration.quantization.blocks import Block, FloatGraph, Layer, Tensor, find_blocks, find_layers
from edgevqa.calibration.quantization.formats import FORMATS, Floats, Format, Scale, round_weight
from edgevqa.calibration.quantization.layer_errors import (
    NO_ERROR,
    ChosenRange,
    Error,
    Weights,
    choose_range,
    output_error,
)
from edgevqa.calibration.quantization.names import DECODER
from edgevqa.calibration.quantization.recipe import AUTO, Recipe
from edgevqa.calibration.quantization.smoothed import Smoothing, divisor_of, gather, key_of, smoothed_statistics
from edgevqa.calibration.quantization.smoothquant import ALPHAS, smoothing
from edgevqa.calibration.quantization.weight_only import round_blocks
from edgevqa.calibration.quantization.weight_scales import absmax_scales, clipped_scales

UNOBSERVED = "calibration did not observe its input"

_TRIAL_METHODS = ("max", "mse")  # what alpha is searched with; the rest is tried once it is known
_LEAST_GAIN = 0.9  # of the error energy that smoothing must leave at most, or it is left out
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerPlan:
    """How a layer is quantised, and its error. `scales` (out,) are the weight's, None for weights in blocks.

    `corrections` (out,) are what each use's bias lacks (None: not measured). `reason`: why it stays high.
    """

    layer: Layer
    error: Error | None
    scales: Floats | None = None
    method: str | None = None
    alpha: float | None = None
    corrections: tuple[Floats, ...] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything but the choice of the layers that stay high."""

    layers: dict[str, LayerPlan]
    scales: dict[Tensor, Scale]
    smoothings: dict[str, Smoothing]


def make_plan(graphs: Mapping[str, FloatGraph], recipe: Recipe, *, report: Report | None = None) -> Plan:
    """Search smoothing first, block by block, then ranges and weight scales of what that gives."""
    return _Planner(graphs, recipe, report or (lambda what, done, total: None)).plan()


class _Planner:
    """One run of `make_plan`."""

    def __init__(self, graphs: Mapping[str, FloatGraph], recipe: Recipe, report: Report) -> None:
        self.graphs, self.recipe, self.report = graphs, recipe, report
        self.format = FORMATS[recipe.numerics]
        self.methods = METHODS if recipe.method == AUTO else (recipe.method,)
        self.layers = find_layers(graphs)
        self.blocks = find_blocks(graphs, self.layers)
        self.scales: dict[Tensor, Scale] = {}

    def plan(self) -> Plan:
        alphas = self._search_smoothing()
        divisors = {block: self._divisor(block, alpha) for block, alpha in alphas.items()}
        smoothings = gather(self.graphs, divisors)
        found: dict[str, LayerPlan] = {}
        for number, block in enumerate(self.blocks):
            self.report("choose ranges and scales", number, len(self.blocks))
            for plan in self._plan_block(block, smoothings):
                found[plan.layer.name] = replace(plan, alpha=alphas.get(block))
        ordered = {layer.name: found[layer.name] for layer in self.layers}
        return Plan(layers=ordered, scales=self.scales, smoothings=smoothings)

    def _search_smoothing(self) -> dict[Block, float]:
        """The alpha of each block that gains by smoothing."""
        found: dict[Block, float] = {}
        for number, block in enumerate(self.blocks):
            self.report("search smoothing", number, len(self.blocks))
            if self.recipe.smooth and block.folds is not None and block.observed and self._active(block.layers):
                alpha = self._best_alpha(block)
                if alpha is not None:
                    found[block] = alpha
        return found

    def _best_alpha(self, block: Block) -> float | None:
        weights = {layer.key: layer.linear.matrix() for layer in block.layers}
        costs = {alpha: self._trial(block, weights, alpha) for alpha in (None, *ALPHAS)}
        best = min(costs, key=lambda alpha: costs[alpha])
        return best if costs[best] < _LEAST_GAIN * costs[None] else None

    def _trial(self, block: Block, weights: Mapping[bytes, Floats], alpha: float | None) -> float:
        """The cost of a block with this alpha: the sum of its layers' relative noise energies."""
        divisor = None if alpha is None else _divisor(block, weights, alpha)
        ready: dict[bytes, Weights] = {}
        for key, weight in weights.items():
            scaled = weight if divisor is None else weight * divisor[:, None]
            ready[key] = Weights.of(scaled, round_weight(scaled, absmax_scales(scaled, self.format), self.format))
        methods = _TRIAL_METHODS if self.recipe.method == AUTO else self.methods
        cost = 0.0
        for tensor, statistics in block.tensors.items():
            readers = [ready[layer.key] for layer in self._active(block.layers) if tensor in layer.tensors]
            if statistics is not None and readers:
                observed = statistics if divisor is None else smoothed_statistics(statistics, divisor)
                cost += choose_range(observed, readers, self.format, methods).cost
        return cost

    def _divisor(self, block: Block, alpha: float) -> Floats:
        return _divisor(block, {layer.key: layer.linear.matrix() for layer in block.layers}, alpha)

    def _active(self, layers: Sequence[Layer]) -> list[Layer]:
        """Layers whose activations are quantised."""
        others = {*self.recipe.weight_only, *self.recipe.high_graphs}
        return [layer for layer in layers if not layer.linear.head and layer.graph not in others]

    def _plan_block(self, block: Block, smoothings: Mapping[str, Smoothing]) -> Iterator[LayerPlan]:
        """The plans of a block's layers. Equal weights get equal scales, whichever graphs they are in."""
        observed = {tensor: _observed(tensor, found, smoothings) for tensor, found in block.tensors.items()}
        active = [layer for layer in self._active(block.layers) if all(observed[tensor] for tensor in layer.tensors)]
        keys = {layer.name: key_of(layer, smoothings[layer.graph]) for layer in block.layers}
        exact: dict[bytes, Floats] = {}
        for layer in active:
            if keys[layer.name] not in exact:
                exact[keys[layer.name]] = smoothings[layer.graph].weight(layer.linear)
        rounding = _Rounding(exact, self.format)
        ranges = self._choose_ranges(active, observed, keys, rounding)
        if self.recipe.weight_clip:
            rounding.clip(active, keys, observed, {tensor: chosen.scale for tensor, chosen in ranges.items()})
        self.scales.update({tensor: chosen.scale for tensor, chosen in ranges.items()})
        for layer in block.layers:
            if layer in active:
                yield self._plan_layer(layer, observed, ranges, rounding, keys[layer.name])
            else:
                yield self._plan_other(layer, observed, smoothings[layer.graph])

    def _choose_ranges(
        self,
        layers: Sequence[Layer],
        observed: Mapping[Tensor, TensorStatistics | None],
        keys: Mapping[str, bytes],
        rounding: _Rounding,
    ) -> dict[Tensor, ChosenRange]:
        found: dict[Tensor, ChosenRange] = {}
        for tensor, statistics in observed.items():
            readers = [rounding.weights[keys[layer.name]] for layer in layers if tensor in layer.tensors]
            if statistics is not None and readers:
                found[tensor] = choose_range(statistics, readers, self.format, self.methods)
        return found

    def _plan_layer(
        self,
        layer: Layer,
        observed: Mapping[Tensor, TensorStatistics | None],
        ranges: Mapping[Tensor, ChosenRange],
        rounding: _Rounding,
        key: bytes,
    ) -> LayerPlan:
        weights = rounding.weights[key]
        error, corrections = NO_ERROR, list[Floats]()
        for tensor in layer.tensors:
            statistics = observed[tensor]
            if statistics is not None:
                error += output_error(statistics, ranges[tensor].scale, weights)
                corrections.append(correction(statistics.rows, ranges[tensor].scale, weights))
        reason = None
        if error.relative > self.recipe.max_error:
            reason = f"local error {error.relative:.2f} is beyond {self.recipe.max_error:g}"
        return LayerPlan(
            layer=layer,
            error=error,
            scales=rounding.scales[key],
            method=", ".join(dict.fromkeys(ranges[tensor].method for tensor in layer.tensors)),
            corrections=tuple(corrections) if self.recipe.bias_correction else None,
            reason=reason,
        )

    def _plan_other(
        self, layer: Layer, observed: Mapping[Tensor, TensorStatistics | None], smoothed: Smoothing
    ) -> LayerPlan:
        """The vocabulary head, what was never observed, and what gets quantised weights alone."""
        if layer.linear.head:
            what = "vocabulary" if layer.graph == DECODER else "output"
            return LayerPlan(layer=layer, error=None, reason=f"{what} head")
        if layer.graph in self.recipe.high_graphs:
            seen_any = any(found is not None for found in observed.values())
            return LayerPlan(layer=layer, error=None, reason="asked to stay high" if seen_any else UNOBSERVED)
        bits = self.recipe.weight_only.get(layer.graph)
        if bits is None:
            return LayerPlan(layer=layer, error=None, reason=UNOBSERVED)
        inputs = layer.linear.in_features
        size = self.recipe.block_of(layer.graph, inputs)
        if inputs % size:
            return LayerPlan(layer=layer, error=None, reason=f"{inputs} inputs are no multiple of {size}")
        seen = [found for tensor in layer.tensors if (found := observed[tensor]) is not None]
        error, reason = None, None
        if seen:
            weight = smoothed.weight(layer.linear)
            weights = Weights.of(weight, round_blocks(weight, size, bits))
            error = sum((output_error(found, None, weights) for found in seen), start=NO_ERROR)
        if error is not None and error.relative > self.recipe.max_error:
            reason = f"local error {error.relative:.2f} is beyond {self.recipe.max_error:g}"
        return LayerPlan(layer=layer, error=error, method=f"weight-{bits}", reason=reason)


class _Rounding:
    """Scales of the weights of one block, and what they make of them."""

    def __init__(self, exact: Mapping[bytes, Floats], kind: Format) -> None:
        self.exact, self.format = exact, kind
        self.scales = {key: absmax_scales(weight, kind) for key, weight in exact.items()}
        self.weights = {key: self._weights(key, scales) for key, scales in self.scales.items()}

    def clip(
        self,
        layers: Sequence[Layer],
        keys: Mapping[str, bytes],
        observed: Mapping[Tensor, TensorStatistics | None],
        scales: Mapping[Tensor, Scale],
    ) -> None:
        """Clip weights where the output error on the kept rows is less for it."""
        for key in {keys[layer.name] for layer in layers}:
            inputs = {t for layer in layers if keys[layer.name] == key for t in layer.tensors}
            found = {tensor: statistics for tensor in sorted(inputs) if (statistics := observed[tensor]) is not None}
            clipped = clipped_scales(self.exact[key], [statistics.rows for statistics in found.values()], self.format)
            trial = self._weights(key, clipped)

            def cost(weights: Weights, found: Mapping[Tensor, TensorStatistics] = found) -> float:
                return sum(output_error(found[t], scales[t], weights).relative ** 2 for t in found)

            if cost(trial) < cost(self.weights[key]):
                self.scales[key], self.weights[key] = clipped, trial

    def _weights(self, key: bytes, scales: Floats) -> Weights:
        return Weights.of(self.exact[key], round_weight(self.exact[key], scales, self.format))


def correction(rows: Floats, scale: Scale, weights: Weights) -> Floats:
    """What the bias lacks, (out,): the mean of y - yq, shrunk to zero where the kept rows do not agree on it."""
    lacking = rows @ weights.exact - scale.round(rows) @ weights.rounded  # (rows, out)
    mean = lacking.mean(axis=0)
    uncertainty = lacking.var(axis=0) / max(len(rows), 1)
    sure: Floats = np.square(mean) / np.maximum(np.square(mean) + uncertainty, np.finfo(np.float32).tiny)
    vector: Floats = (mean * sure).astype(np.float32)
    return vector


def _divisor(block: Block, weights: Mapping[bytes, Floats], alpha: float) -> Floats:
    seen = [statistics.channel_absmax for statistics in block.tensors.values() if statistics is not None]
    return smoothing(np.max(seen, axis=0), weights.values(), alpha)


def _observed(
    tensor: Tensor, statistics: TensorStatistics | None, smoothings: Mapping[str, Smoothing]
) -> TensorStatistics | None:
    """The statistics after smoothing; None where nothing was observed."""
    if statistics is None or len(statistics.rows) == 0:
        return None
    divisor = divisor_of(tensor, smoothings)
    return statistics if divisor is None else smoothed_statistics(statistics, divisor)
