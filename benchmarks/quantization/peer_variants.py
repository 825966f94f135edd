"""Put graphs that another project quantised into a bundle as a further variant, so that the same runtime runs them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import onnx_ir as ir

from benchmarks.quantization.peer_graphs import Outcome, Source
from benchmarks.quantization.recipes import Recipe
from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import GraphSpec, VariantSpec


def add_variant(bundle: Bundle, recipe: Recipe, outcome: Outcome, sources: Sequence[Source]) -> Bundle:
    """The bundle with a variant of the recipe's name; graphs that the tool failed on are there in float32."""
    with BundleWriter.extend(bundle) as writer:
        folder = f"graphs/{recipe.name}"
        graphs: dict[str, GraphSpec] = {}
        with SharedWeights(writer.path(f"{folder}/weights.data")) as weights:
            for source in sources:
                model = ir.load(outcome.files.get(source.graph, source.path))
                relative = f"{folder}/{source.graph}.onnx"
                weights.write_graph(model, writer.path(relative))
                made = graph_spec(model, writer.describe(relative))
                float_graph = bundle.graph("fp32", source.graph)
                # Sessions check names and dtypes; the axes' names, which tools drop, are those of the float graph.
                graphs[source.graph] = msgspec.structs.replace(
                    made, inputs=float_graph.inputs, outputs=float_graph.outputs
                )
        variant = VariantSpec(
            precision="int8",
            numerics=recipe.numerics,
            weights=writer.describe(f"{folder}/weights.data"),
            graphs=graphs,
            recipe={"tool": recipe.tool, "settings": recipe.settings, "float32": sorted(outcome.errors)},
        )
        variants = {**bundle.manifest.variants, recipe.name: variant}
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))


def size_mb(bundle: Bundle, variant: str) -> float:
    """Megabytes (10**6 bytes) of a variant's graphs and weights."""
    spec = bundle.variant(variant)
    files = [graph.file for graph in spec.graphs.values()] + ([spec.weights] if spec.weights else [])
    return sum(file.size_bytes for file in files) / 1e6
