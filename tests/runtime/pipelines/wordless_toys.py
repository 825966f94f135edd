"""Toy models that need no words: a classifier of pictures, and a captioner whose answer may begin with a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import GraphSpec, ImageSpec, Manifest, SourceSpec, VariantSpec
from tests.runtime.pipelines.conftest import (
    HEAD,
    HEADS,
    SIZE,
    TOKENS,
    VISION,
    GraphMaker,
    Shape,
    language_decoder,
    write_toy,
)

LABELS = ["red", "blue", "green", "tabby, cat", "none"]


def classifier(writer: BundleWriter) -> GraphSpec:
    make = GraphMaker("classifier", {"pixel_values": ("float32", ["batch", 3, SIZE, SIZE])}, 21)
    pooled = make.op("ReduceMean", "pixel_values", make.constant([2, 3]), keepdims=0)
    make.op("MatMul", pooled, make.weight(3, len(LABELS)), output="logits")
    return make.save(writer, "fp32", {"logits": ("float32", ["batch", len(LABELS)])})


def write_classifier(path: Path, labels: Sequence[str] = LABELS) -> Path:
    """Write the toy classifier to `path`; it has five labels."""
    with BundleWriter(path) as writer:
        side = {"height": SIZE, "width": SIZE}
        writer.finish(
            Manifest(
                schema_version=1,
                edgevqa_version="0",
                created="2026-01-01T00:00:00Z",
                family="toy",
                task="image-classification",
                pipeline="classification",
                target="cpu",
                image=ImageSpec(
                    height=SIZE,
                    width=SIZE,
                    resize=side,
                    resample="bilinear",
                    crop=None,
                    rescale_factor=1 / 255,
                    mean=[0.5, 0.5, 0.5],
                    std=[0.2, 0.2, 0.2],
                ),
                text=None,
                generation=None,
                labels=list(labels),
                variants={
                    "fp32": VariantSpec(
                        precision="fp32", numerics="fp32", weights=None, graphs={"classifier": classifier(writer)}
                    )
                },
                source=SourceSpec(kind="reference", id="toy", revision=None, sha256="0" * 64, parameters=0),
                model={},
            )
        )
    return path


def caption_projector(writer: BundleWriter) -> GraphSpec:
    """From the picture's states to the keys and values that the decoder attends to."""
    make = GraphMaker("projector", {"image_states": ("float32", ["image", TOKENS, VISION])}, 22)
    for kind in ("key", "value"):
        make.heads(make.op("MatMul", "image_states", make.weight(VISION, HEADS * HEAD)), output=f"cross_{kind}.0")
    cross: Shape = ["image", HEADS, TOKENS, HEAD]
    return make.save(writer, "captions", {f"cross_{kind}.0": ("float32", cross) for kind in ("key", "value")})


def write_captioner(path: Path) -> Path:
    """Write the toy captioner to `path`."""
    bundle = Bundle.open(write_toy(path, fused=False))
    manifest = bundle.manifest
    text = msgspec.structs.replace(manifest.text, required=False, eos_token_id=None) if manifest.text else None
    with BundleWriter.extend(bundle) as writer:
        graphs = {
            "vision_trunk": bundle.graph("fp32", "vision_trunk"),
            "projector": caption_projector(writer),
            "language_decoder": language_decoder(writer, "captions", "capacity", prompted=True),
        }
        variant = msgspec.structs.replace(bundle.variant("fp32"), graphs=graphs)
        writer.finish(
            msgspec.structs.replace(manifest, task="image-to-text", text=text, variants={"fp32": variant}),
        )
    return path
