"""The table of flows: which class runs the graphs of a manifest's `pipeline`. One row a kind of model."""

from __future__ import annotations

import importlib

import msgspec

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import Flow, PipelineOptions


class FlowEntry(msgspec.Struct, frozen=True):
    """Where a flow's class lives (`module:class`), and what its tokens mean: a kind of `runtime/codecs.py`."""

    location: str
    codec: str


FLOWS: dict[str, FlowEntry] = {
    "encoder_decoder": FlowEntry("edgevqa.runtime.pipelines.encoder_decoder:EncoderDecoderFlow", "text"),
    "decoder_only": FlowEntry("edgevqa.runtime.pipelines.decoder_only:DecoderOnlyFlow", "text"),
    "classification": FlowEntry("edgevqa.runtime.pipelines.classification:ClassificationFlow", "label"),
}


def flow_entry(manifest: Manifest) -> FlowEntry:
    """The row that the manifest asks for. Raises `BundleError` for one that this version does not know."""
    if manifest.pipeline not in FLOWS:
        raise BundleError(
            f"The bundle asks for the pipeline '{manifest.pipeline}'; this edgevqa has {', '.join(FLOWS)}. "
            "Upgrade edgevqa."
        )
    return FLOWS[manifest.pipeline]


def make_flow(graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> Flow:
    """The flow that the manifest asks for; raises what `flow_entry` raises."""
    module, _, name = flow_entry(manifest).location.partition(":")
    flow: Flow = getattr(importlib.import_module(module), name)(graphs, manifest, options)
    return flow
