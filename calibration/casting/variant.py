"""Write the fp16 or bf16 variant of a bundle: every graph cast, one weights file, and a report of what stayed FP32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from edgevqa.calibration.casting.boundaries import plan_boundaries
from edgevqa.calibration.casting.cast import CastReport, cast_graph
from edgevqa.calibration.casting.plan import MARGIN, CastOptions, CastPrecision
from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.observation.statistics import VARIANT, GraphStatistics, origin
from edgevqa.calibration.reading import load_graph
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import GraphSpec, VariantSpec


class CastVariantReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `calibration/<variant>.json`: the types of the graphs' inputs and outputs, and what each graph kept."""

    variant: str
    source: str
    precision: CastPrecision
    margin: float | None
    boundaries: dict[str, str]
    graphs: dict[str, CastReport]


def write_cast_variant(
    bundle: Bundle,
    writer: BundleWriter,
    statistics: Mapping[str, GraphStatistics],
    precision: CastPrecision,
    *,
    margin: float | None = MARGIN,
    progress: Callable[[str, int, int], None] | None = None,
) -> VariantSpec:
    """Cast the float32 graphs of `bundle` into `writer` (files under `graphs/<precision>/`), with the report.

    `statistics` is what `load_statistics(bundle)` gives. Weights are read and written one tensor at a time.
    """
    folder = f"graphs/{precision}"
    absmax = {name: found.absmax for name, found in statistics.items()}
    models = {name: load_graph(bundle.graph_path(VARIANT, name)) for name in bundle.variant(VARIANT).graphs}
    boundaries = plan_boundaries(models, absmax, precision=precision, margin=margin)
    options = CastOptions(precision=precision, margin=margin, boundaries=boundaries)
    reports: dict[str, CastReport] = {}
    graphs: dict[str, GraphSpec] = {}
    with SharedWeights(writer.path(f"{folder}/weights.data")) as weights:
        for done, (name, model) in enumerate(models.items()):
            if progress is not None:
                progress(f"cast {name}", done, len(models))
            reports[name] = cast_graph(model, absmax.get(name, {}), options)
            weights.write_graph(model, writer.path(f"{folder}/{name}.onnx"))
            graphs[name] = graph_spec(model, writer.describe(f"{folder}/{name}.onnx"))
    report = CastVariantReport(
        variant=precision,
        source=VARIANT,
        precision=precision,
        margin=margin,
        boundaries=boundaries,
        graphs=reports,
    )
    return VariantSpec(
        precision=precision,
        numerics=precision,
        weights=writer.describe(f"{folder}/weights.data"),
        graphs=graphs,
        recipe={**origin(bundle, statistics), "margin": margin},
        report=writer.add_bytes(encode_report(report), f"calibration/{precision}.json"),
    )


def encode_report(report: CastVariantReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
