"""Toy models that need no words: a classifier of pictures, and a captioner whose answer may begin with a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import GraphSpec, ImageSpec, Manifest, SourceSpec, VariantSpec
from tests.runtime.pipelines.conftest import CROSS, HEADS, SIZE, TEXT, TOKENS, GraphMaker, write_toy

LABELS = ["red", "blue", "green", "tabby, cat", "none"]


def classifier(writer: BundleWriter) -> GraphSpec:
    make = GraphMaker("classifier", {"pixel_values": ("float32", ["batch", 3, SIZE, SIZE])}, 21)
    pooled = make.op("ReduceMean", "pixel_values", make.constant([2, 3]), keepdims=0)
    make.op("MatMul", pooled, make.weight(3, len(LABELS)), output="logits")
    return make.save(writer, "fp32", {"logits": ("float32", ["batch", len(LABELS)])})


def write_classifier(path: Path) -> Path:
    """Write the toy classifier to `path`."""
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
                labels=LABELS,
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


def caption_encoder(writer: BundleWriter) -> GraphSpec:
    """A `language_encoder` that does not read the question."""
    make = GraphMaker("language_encoder", {"image_embeds": ("float32", ["batch", TOKENS, TEXT])}, 22)
    batch = make.op("Shape", "image_embeds", start=0, end=1)
    shape = make.op("Concat", batch, make.constant([TOKENS]), axis=0)
    make.op("Expand", make.constant([[1]]), shape, output="encoder_attention_mask")
    for kind in ("key", "value"):
        make.heads(make.op("MatMul", "image_embeds", make.weight(TEXT, HEADS * 4)), output=f"cross_{kind}.0")
    outputs: dict[str, Any] = {
        "encoder_attention_mask": ("int64", ["batch", "positions"]),
        "cross_key.0": ("float32", CROSS),
        "cross_value.0": ("float32", CROSS),
    }
    return make.save(writer, "captions", outputs)


def write_captioner(path: Path) -> Path:
    """Write the toy captioner to `path`."""
    bundle = Bundle.open(write_toy(path, fused=False))
    manifest = bundle.manifest
    text = msgspec.structs.replace(manifest.text, required=False, eos_token_id=None) if manifest.text else None
    with BundleWriter.extend(bundle) as writer:
        graphs = {**bundle.variant("fp32").graphs, "language_encoder": caption_encoder(writer)}
        variant = msgspec.structs.replace(bundle.variant("fp32"), graphs=graphs)
        writer.finish(
            msgspec.structs.replace(manifest, task="image-to-text", text=text, variants={"fp32": variant}),
        )
    return path
