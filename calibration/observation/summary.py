"""The calibration's summary: JSON for people, with every tensor's range by every method."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import onnx_ir as ir

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.collect import Collected
from edgevqa.calibration.observation.ranges import METHODS, activation_range
from edgevqa.calibration.observation.samples import CalibrationSet
from edgevqa.calibration.observation.statistics import VARIANT, TensorStatistics
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import calibrate_line
from edgevqa.runtime.errors import BundleError

LARGEST = 10


class Ranges(msgspec.Struct, frozen=True, kw_only=True):
    """The ends of a tensor's range by one method: symmetric for signed, asymmetric for unsigned 8 bits."""

    symmetric: tuple[float, float]
    asymmetric: tuple[float, float]


class TensorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor and the Linear layers (`graph/layer`) that read it, none of a residual stream; `rows` were seen."""

    graph: str
    tensor: str
    layers: list[str]
    rows: int
    low: float
    high: float
    ranges: dict[str, Ranges]


class GraphSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How often a graph ran, how many tensors were watched, and those with the largest |x|.

    Of inputs of Linear layers and of residual streams all is known, of the other float tensors the largest |x|.
    """

    runs: int
    linear_inputs: int
    residual_streams: int
    float_tensors: int
    largest: dict[str, float]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All of `calibration/summary.json`. `method` is what `edgevqa quantize` takes unless told otherwise."""

    variant: str
    dataset: str
    seed: int
    samples: int
    pictures: int
    sha256: str
    method: str
    warnings: list[str]
    graphs: dict[str, GraphSummary]
    tensors: list[TensorSummary]


def summarise(
    bundle: Bundle,
    chosen: CalibrationSet,
    collected: Collected,
    *,
    method: str,
    dataset: str,
    advance: Callable[[], None],
) -> Summary:
    """The summary of what was collected; `dataset` is how the data set is called. `advance` is called a graph."""
    tensors: list[TensorSummary] = []
    for graph in collected.graphs:
        advance()
        tensors += _tensors(bundle, graph, collected)
    return Summary(
        variant=VARIANT,
        dataset=dataset,
        seed=chosen.seed,
        samples=len(chosen.samples),
        pictures=len(chosen.groups),
        sha256=chosen.sha256,
        method=method,
        warnings=list(chosen.warnings),
        graphs={graph: _graph(graph, collected, tensors) for graph in collected.graphs},
        tensors=tensors,
    )


def read_summary(bundle: Bundle) -> Summary:
    """The summary in a bundle. Raises `InputError` where it was never calibrated, `BundleError` for a foreign file."""
    path, _ = bundle.calibration_paths()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{path} is no calibration summary: {error}. Calibrate again: {calibrate_line(bundle.root)}"
        ) from error


def _graph(graph: str, collected: Collected, tensors: list[TensorSummary]) -> GraphSummary:
    absmax = collected.graphs[graph].absmax
    read = [bool(tensor.layers) for tensor in tensors if tensor.graph == graph]
    largest = sorted(absmax, key=lambda name: -absmax[name])[:LARGEST]
    return GraphSummary(
        runs=collected.runs[graph],
        linear_inputs=read.count(True),
        residual_streams=read.count(False),
        float_tensors=len(absmax),
        largest={name: absmax[name] for name in largest},
    )


def _tensors(bundle: Bundle, graph: str, collected: Collected) -> list[TensorSummary]:
    readers: dict[str, list[str]] = {}
    for linear in find_linears(ir.load(bundle.graph_path(VARIANT, graph)).graph).values():
        for use in linear.uses:
            readers.setdefault(str(use.input.name), []).append(f"{graph}/{linear.name}")
    return [
        TensorSummary(
            graph=graph,
            tensor=name,
            layers=readers.get(name, []),
            rows=tensor.row_count,
            low=tensor.low,
            high=tensor.high,
            ranges={method: _ranges(tensor, method) for method in METHODS},
        )
        for name, tensor in collected.graphs[graph].inputs.items()
    ]


def _ranges(tensor: TensorStatistics, method: str) -> Ranges:
    return Ranges(
        symmetric=activation_range(tensor, method, symmetric=True),
        asymmetric=activation_range(tensor, method, symmetric=False),
    )
