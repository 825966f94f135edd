"""The table of flows: which class runs the graphs of a manifest's `pipeline`. One row a kind of model."""

from __future__ import annotations

import importlib

from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import Flow, PipelineOptions

FLOWS: dict[str, str] = {
    "encoder_decoder_vqa": "edgevqa.runtime.pipelines.encoder_decoder:EncoderDecoderFlow",
}


def make_flow(graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> Flow:
    """The flow that the manifest asks for. Raises `BundleError` for one that this version does not know."""
    if manifest.pipeline not in FLOWS:
        raise BundleError(
            f"The bundle asks for the pipeline '{manifest.pipeline}'; this edgevqa has {', '.join(FLOWS)}. "
            "Upgrade edgevqa."
        )
    module, _, name = FLOWS[manifest.pipeline].partition(":")
    flow: Flow = getattr(importlib.import_module(module), name)(graphs, manifest, options)
    return flow
