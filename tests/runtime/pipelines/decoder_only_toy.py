"""A toy decoder-only model: a picture's embeddings in a prompt, two layers, one graph for chunks and for single tokens.

Random weights, as in the toy of the conftest. With the processor `toy` wide pictures have more embeddings than tall ones,
and a prompt has a word at the end of each of their rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import (
    GenerationSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    SourceSpec,
    TextSpec,
    VariantSpec,
)
from edgevqa.runtime.preprocessing import Prepared
from tests.runtime.pipelines.conftest import (
    ANSWER_WORDS,
    HEAD,
    HEADS,
    QUESTION,
    QUESTION_WORDS,
    SIZE,
    TEXT,
    TOKENS,
    VISION,
    GraphMaker,
    Shape,
    masked_mean,
)

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<image>"]
WORDS = [*SPECIAL, "user", "answer", "row", *QUESTION_WORDS, *ANSWER_WORDS]
IMAGE_TOKEN, ROW_TOKEN = WORDS.index("<image>"), WORDS.index("row")
TEMPLATE = "user <image> {question} answer"
LAYERS, PLACES = 2, 256
PROCESSOR = "tests.runtime.pipelines.decoder_only_toy:prepare"


def prepare(rgb: Rgb, spec: ImageSpec) -> Prepared:
    """Square parts of a picture, one or two wide: two rows of embeddings, and how they stand in a prompt."""
    columns = 2 if rgb.shape[1] > rgb.shape[0] else 1
    across = np.linspace(0, rgb.shape[1] - 1, SIZE * columns).astype(int)
    down = np.linspace(0, rgb.shape[0] - 1, SIZE).astype(int)
    pixels = rgb[np.ix_(down, across)].transpose(2, 0, 1)[None].astype(np.float32) / 128 - 1
    row = (IMAGE_TOKEN,) * (SIZE * columns // 4)
    expansion = None if spec.settings["grid"] else (*row, ROW_TOKEN, *row, ROW_TOKEN)
    grid = (1, 2, len(row)) if spec.settings["grid"] else None
    return Prepared(inputs={"pixel_values": pixels}, expansion=expansion, grid=grid)


def vision(writer: BundleWriter, *, width: int | str, output: str) -> GraphSpec:
    """`pixel_values` to `image_embeds`, or to `trunk_states` where the question is fused into them."""
    name = "vision" if output == "image_embeds" else "vision_trunk"
    make = GraphMaker(name, {"pixel_values": ("float32", ["image", 3, SIZE, width])}, 11)
    pooled = make.op("AveragePool", "pixel_values", kernel_shape=[4, 4], strides=[4, 4])
    patches = make.op("Transpose", make.op("Reshape", pooled, make.constant([0, 3, -1])), perm=[0, 2, 1])
    hidden = TEXT if name == "vision" else VISION
    make.op("Tanh", make.op("MatMul", patches, make.weight(3, hidden)), output=output)
    slots: int | str = TOKENS if isinstance(width, int) else "slots"
    return make.save(writer, "fp32", {output: ("float32", ["image", slots, hidden])})


def vision_fusion(writer: BundleWriter) -> GraphSpec:
    """Embeddings that depend on the question: no prefix may be kept."""
    inputs: dict[str, tuple[str, Shape]] = {
        "trunk_states": ("float32", ["image", TOKENS, VISION]),
        "question_states": ("float32", ["batch", "words", TEXT]),
        "attention_mask": QUESTION["attention_mask"],
    }
    make = GraphMaker("vision_fusion", inputs, 12)
    asked = make.op("MatMul", masked_mean(make, "question_states", "attention_mask"), make.weight(TEXT, TEXT))
    seen = make.op("MatMul", "trunk_states", make.weight(VISION, TEXT))
    make.op("Tanh", make.op("Add", seen, asked), output="image_embeds")
    return make.save(writer, "fp32", {"image_embeds": ("float32", ["batch", TOKENS, TEXT])})


def question_encoder(writer: BundleWriter) -> GraphSpec:
    make = GraphMaker("question_encoder", QUESTION, 13)
    states = make.op("Gather", make.weight(len(WORDS), TEXT), "input_ids")
    make.op("Tanh", make.op("Add", states, masked_mean(make, states, "attention_mask")), output="question_states")
    return make.save(writer, "fp32", {"question_states": ("float32", ["batch", "words", TEXT])})


def language_decoder(writer: BundleWriter, *, capacity: int | str, grid: bool) -> GraphSpec:
    """One graph for prompts and tokens; with `grid` a place has three positions."""
    past: Shape = ["batch", HEADS, capacity, HEAD]
    cache = {f"past_{kind}.{layer}": ("float32", past) for layer in range(LAYERS) for kind in ("key", "value")}
    inputs: dict[str, tuple[str, Shape]] = {
        "input_ids": ("int64", ["batch", "length"]),
        "image_embeds": ("float32", ["batch", "slots", TEXT]),
        "image_index": ("int64", ["batch", "length"]),
        "position_ids": ("int64", [3, "batch", "length"] if grid else ["batch", "length"]),
        "past_attention_mask": ("int64", ["batch", capacity]),
        "attention_mask": ("int64", ["batch", "length"]),
        **cache,
    }
    make = GraphMaker("language_decoder", inputs, 14)
    state, hidden = embed(make, grid=grid), make.hide(visible(make))
    for layer in range(LAYERS):
        state = decoder_layer(make, state, hidden, layer)
    last = make.op("Gather", state, make.constant(-1), axis=1)  # (batch, text)
    logits = make.op("MatMul", last, make.weight(TEXT, len(WORDS)))
    make.op("Mul", logits, make.constant(0.7, "float32"), output="logits")
    new: Shape = ["batch", HEADS, "length", HEAD]
    outputs: dict[str, tuple[str, Shape]] = {"logits": ("float32", ["batch", len(WORDS)])}
    outputs |= {name.replace("past", "new"): ("float32", new) for name in cache}
    return make.save(writer, "fp32", outputs)


def embed(make: GraphMaker, *, grid: bool) -> str:
    """Words, or a picture's embeddings in their places, and positions; (batch, length, text)."""
    words = make.op("Gather", make.weight(len(WORDS), TEXT), "input_ids")
    index = make.op("Max", "image_index", make.constant(0))
    picked = make.op("GatherND", "image_embeds", make.op("Unsqueeze", index, make.constant([2])), batch_dims=1)
    is_image = make.op("Unsqueeze", make.op("GreaterOrEqual", "image_index", make.constant(0)), make.constant([2]))
    places = make.op("Gather", make.weight(PLACES, TEXT), "position_ids")
    if grid:  # (3, batch, length, text): each of the three counts in its own way
        each = make.op("Mul", places, make.constant([[[[1.0]]], [[[0.7]]], [[[0.4]]]], "float32"))
        places = make.op("ReduceSum", each, make.constant([0]), keepdims=0)
    return make.op("Add", make.op("Where", is_image, picked, words), places)


def visible(make: GraphMaker) -> str:
    """(batch, 1, length, capacity + length): the tokens of the past, and those of the chunk up to each place."""
    length = make.op("Shape", "input_ids", start=1, end=2)
    square = make.op("Concat", length, length, axis=0)
    causal = make.op("Trilu", make.op("Expand", make.constant([[1]]), square), upper=0)
    chunk = make.op("Mul", make.op("Unsqueeze", "attention_mask", make.constant([1, 2])), causal)
    past = make.op("Unsqueeze", "past_attention_mask", make.constant([1, 2]))
    tall = make.op("Concat", make.constant([1, 1]), length, make.constant([1]), axis=0)
    return make.op("Concat", make.op("Expand", past, tall), chunk, axis=3)


def decoder_layer(make: GraphMaker, state: str, hidden: str, layer: int) -> str:
    query = make.heads(make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD)))
    keys: dict[str, str] = {}
    for kind in ("key", "value"):
        projected = make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD))
        new = make.heads(projected, output=f"new_{kind}.{layer}")
        keys[kind] = make.op("Concat", f"past_{kind}.{layer}", new, axis=2)
    mixed = make.attend(query, keys["key"], keys["value"], hidden)
    return make.op("Tanh", make.op("Add", state, make.op("MatMul", mixed, make.weight(HEADS * HEAD, TEXT))))


def tokenizer_json() -> bytes:
    """Words, `<s>` before them, and `<image>` as a special token."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>", "<image>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))])
    return made.to_str().encode()


def write_decoder_only(
    path: Path,
    *,
    capacity: int | str = "capacity",
    max_context: int | None = None,
    max_positions: int | None = None,
    several: bool = False,
    processor: str = "fixed",
    grid: bool = False,
    fused: bool = False,
) -> Path:
    """Write the toy bundle to `path`. `processor` `toy` must be a row of `PROCESSORS` (see `PROCESSOR`).

    With `several` a question may be about more pictures than one.
    """
    with BundleWriter(path) as writer:
        width: int | str = SIZE if processor == "fixed" else "width"
        graphs = {}
        if fused:
            graphs["vision_trunk"] = vision(writer, width=width, output="trunk_states")
            graphs["question_encoder"] = question_encoder(writer)
            graphs["vision_fusion"] = vision_fusion(writer)
        else:
            graphs["vision"] = vision(writer, width=width, output="image_embeds")
        graphs["language_decoder"] = language_decoder(writer, capacity=capacity, grid=grid)
        text = TextSpec(
            tokenizer=writer.add_bytes(tokenizer_json(), "tokenizer.json"),
            cleaning="none",
            max_tokens=12,
            pad_token_id=0,
            eos_token_id=1,
            special_token_ids=[0, 1, 2, 3, IMAGE_TOKEN],
            template=TEMPLATE,
            image_token_id=IMAGE_TOKEN,
        )
        given: dict[str, Any] = {"processor": processor, "settings": {"grid": grid}} if processor != "fixed" else {}
        image = ImageSpec(
            height=SIZE,
            width=SIZE,
            resize={"shortest_edge": SIZE},
            resample="bicubic",
            crop={"height": SIZE, "width": SIZE},
            rescale_factor=1 / 255,
            mean=[0.5, 0.5, 0.5],
            std=[0.2, 0.2, 0.2],
            tokens=TOKENS if processor == "fixed" else 2 * TOKENS + 2,
            separator=[] if several else None,
            **given,
        )
        writer.finish(
            Manifest(
                schema_version=1,
                edgevqa_version="0",
                created="2026-01-01T00:00:00Z",
                family="toy",
                task="visual-question-answering",
                pipeline="decoder_only",
                target="cpu",
                image=image,
                text=text,
                generation=GenerationSpec(
                    decoder_start_token_id=3,
                    eos_token_id=1,
                    pad_token_id=0,
                    max_new_tokens=6,
                    max_context=max_context,
                    max_positions=max_positions,
                ),
                variants={"fp32": VariantSpec(precision="fp32", numerics="fp32", weights=None, graphs=graphs)},
                source=SourceSpec(kind="reference", id="toy", revision=None, sha256="0" * 64, parameters=0),
                model={},
            )
        )
    return path
