"""The table of flows: which class runs the graphs of a manifest's `pipeline`. One row a kind of model."""

from __future__ import annotations

import importlib

import msgspec

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import Flow, PipelineOptions


class FlowEntry(msgspec.Struct, frozen=True):
    """Where a flow's class lives (`module:class`), and what its tokens mean: a kind of `runtime/codecs.py`.

    `answers` is False where what it says is no answer that could be right or wrong. `stages` are told apart in times beside
    the graphs.
    """

    location: str
    codec: str
    answers: bool = True
    stages: tuple[str, ...] = ()


FLOWS: dict[str, FlowEntry] = {
    "encoder_decoder": FlowEntry("edgevqa.runtime.pipelines.encoder_decoder:EncoderDecoderFlow", "text"),
    "decoder_only": FlowEntry("edgevqa.runtime.pipelines.decoder_only:DecoderOnlyFlow", "text", stages=("prefill",)),
    "classification": FlowEntry("edgevqa.runtime.pipelines.classification:ClassificationFlow", "label"),
    "matching": FlowEntry("edgevqa.runtime.pipelines.matching:MatchingFlow", "caption"),
    "features": FlowEntry("edgevqa.runtime.pipelines.features:FeaturesFlow", "label", answers=False),
}


def flow_entry(manifest: Manifest) -> FlowEntry:
    """The row that the manifest asks for. Raises `BundleError` for one that this version does not know."""
    if manifest.pipeline not in FLOWS:
        raise BundleError(
            f"The bundle asks for the pipeline '{manifest.pipeline}'; this edgevqa has {', '.join(FLOWS)}. "
            f"It was made by edgevqa {manifest.edgevqa_version}. Upgrade edgevqa, or export the bundle again."
        )
    return FLOWS[manifest.pipeline]


def stages_of(manifest: Manifest, variant: str) -> list[str]:
    """What the times of an answer are told of: the variant's graphs, and the flow's further stages."""
    return [*flow_entry(manifest).stages, *manifest.variants[variant].graphs]


def make_flow(graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> Flow:
    """The flow that the manifest asks for; raises what `flow_entry` raises."""
    module, _, name = flow_entry(manifest).location.partition(":")
    flow: Flow = getattr(importlib.import_module(module), name)(graphs, manifest, options)
    return flow
