"""A toy model that compares pictures and texts: two encoders, a matching head, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import (
    GraphSpec,
    ImageSpec,
    Manifest,
    MatchingSpec,
    SourceSpec,
    TextSpec,
    VariantSpec,
)
from tests.runtime.pipelines.conftest import (
    QUESTION,
    SIZE,
    TEXT,
    TOKENS,
    VISION,
    VOCABULARY,
    GraphMaker,
    Shape,
    masked_mean,
    tokenizer_json,
)

PIXELS: tuple[str, Shape] = ("float32", ["image", 3, SIZE, SIZE])
STATES: tuple[str, Shape] = ("float32", ["image", TOKENS, VISION])
WIDTH, WORDS = 5, 12


def patches(make: GraphMaker) -> str:
    """(image, tokens, 3) means of `pixel_values`."""
    pooled = make.op("AveragePool", "pixel_values", kernel_shape=[4, 4], strides=[4, 4])
    return make.op("Transpose", make.op("Reshape", pooled, make.constant([0, 3, TOKENS])), perm=[0, 2, 1])


def vision(writer: BundleWriter) -> GraphSpec:
    make = GraphMaker("vision", {"pixel_values": PIXELS}, 1)
    make.op("MatMul", patches(make), make.weight(3, VISION), output="image_states")
    return make.save(writer, "fp32", {"image_states": STATES})


def image_encoder(writer: BundleWriter, *, states: bool = False, vectors: bool = False) -> GraphSpec:
    """`states`: of what `vision` gives; `vectors`: one embedding a patch."""
    make = GraphMaker("image_encoder", {"image_states": STATES} if states else {"pixel_values": PIXELS}, 2)
    seen = "image_states" if states else patches(make)
    seen = seen if vectors else make.op("ReduceMean", seen, make.constant([1]), keepdims=0)
    projected = make.op("MatMul", seen, make.weight(VISION if states else 3, WIDTH))
    make.op("LpNormalization", projected, output="image_embeds", axis=-1, p=2)
    shape: Shape = ["image", TOKENS, WIDTH] if vectors else ["image", WIDTH]
    return make.save(writer, "fp32", {"image_embeds": ("float32", shape)})


def text_encoder(writer: BundleWriter, *, fixed: bool = False) -> GraphSpec:
    """`fixed`: texts of `WORDS` tokens alone, whose padding counts."""
    inputs: dict[str, tuple[str, Shape]] = {"input_ids": ("int64", ["batch", WORDS])} if fixed else QUESTION
    make = GraphMaker("text_encoder", dict(inputs), 3)
    states = make.op("Gather", make.weight(len(VOCABULARY), TEXT), "input_ids")
    if fixed:
        mean = make.op("ReduceMean", states, make.constant([1]), keepdims=0)
    else:
        mean = make.op("Squeeze", masked_mean(make, states, "attention_mask"), make.constant([1]))
    make.op("LpNormalization", make.op("MatMul", mean, make.weight(TEXT, WIDTH)), output="text_embeds", axis=-1, p=2)
    return make.save(writer, "fp32", {"text_embeds": ("float32", ["batch", WIDTH])})


def matcher(writer: BundleWriter, *, states: bool = True, outputs: int = 2, axis: str = "image") -> GraphSpec:
    """`states`: of what `vision` gives, else of pixels; `axis` names the pictures' rows, which broadcast if `image`."""
    given = ("float32", [axis, *(STATES if states else PIXELS)[1][1:]])
    make = GraphMaker("matcher", {"image_states" if states else "pixel_values": given, **QUESTION}, 4)
    seen = "image_states" if states else patches(make)
    picture = make.op(
        "MatMul", make.op("ReduceMean", seen, make.constant([1])), make.weight(VISION if states else 3, TEXT)
    )
    words = make.op("Gather", make.weight(len(VOCABULARY), TEXT), "input_ids")
    mixed = make.op("Tanh", make.op("Mul", picture, masked_mean(make, words, "attention_mask")))
    flat = make.op("Squeeze", mixed, make.constant([1]))
    make.op("MatMul", flat, make.weight(TEXT, outputs), output="match_logits")
    return make.save(writer, "fp32", {"match_logits": ("float32", ["batch", outputs])})


def write_matching(path: Path, graphs: dict[str, dict[str, Any]], matching: MatchingSpec | None) -> Path:
    """Write a bundle with these graphs, each with its settings."""
    makers = {"vision": vision, "image_encoder": image_encoder, "text_encoder": text_encoder, "matcher": matcher}
    with BundleWriter(path) as writer:
        made = {name: makers[name](writer, **settings) for name, settings in graphs.items()}
        text = TextSpec(
            tokenizer=writer.add_bytes(tokenizer_json(), "tokenizer.json"),
            cleaning="none",
            max_tokens=WORDS,
            pad_token_id=0,
            eos_token_id=1,
            special_token_ids=[0, 1, 2],
            required=False,
        )
        writer.finish(
            Manifest(
                schema_version=1,
                edgevqa_version="0",
                created="2026-01-01T00:00:00Z",
                family="toy",
                task="image-text-similarity",
                pipeline="matching",
                target="cpu",
                image=ImageSpec(
                    height=SIZE,
                    width=SIZE,
                    resize={"height": SIZE, "width": SIZE},
                    resample="bicubic",
                    crop=None,
                    rescale_factor=1 / 255,
                    mean=[0.5, 0.5, 0.5],
                    std=[0.2, 0.2, 0.2],
                ),
                text=text,
                generation=None,
                matching=matching,
                variants={"fp32": VariantSpec(precision="fp32", numerics="fp32", weights=None, graphs=made)},
                source=SourceSpec(kind="reference", id="toy", revision=None, sha256="0" * 64, parameters=0),
                model={},
            )
        )
    return path
