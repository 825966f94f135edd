"""A toy model with the graphs of QA-ViT: random weights, a few numbers wide, made with `onnx.helper` in milliseconds.

Every input matters to the answer, so that a mask, a cache slot or a row that is mixed up shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import (
    GenerationSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    SourceSpec,
    TensorSpec,
    TextSpec,
    VariantSpec,
)

QUESTION_WORDS = ["?", "what", "color", "is", "the", "ball", "how", "many", "dogs", "are", "there", "a", "it", "and"]
ANSWER_WORDS = ["red", "blue", "green", "yes", "no", "two", "left", "of", "cat", "on", "with"]
VOCABULARY = ["<pad>", "</s>", "<unk>", *QUESTION_WORDS, *ANSWER_WORDS]
SIZE, TOKENS, VISION, TEXT, HEADS, HEAD = 8, 4, 6, 8, 2, 4
DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
Shape = list[int | str]
CACHE: Shape = ["batch", HEADS, "capacity", HEAD]
CROSS: Shape = ["batch", HEADS, "positions", HEAD]


class GraphMaker:
    """Builds one graph: `op` adds a node and gives its output's name, `weight` a random matrix."""

    def __init__(self, name: str, inputs: dict[str, tuple[str, Shape]], seed: int) -> None:
        self.name = name
        self.inputs = inputs
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(self, kind: str, *names: str, output: str | None = None, **attributes: Any) -> str:
        result = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(names), [result], **attributes))
        return result

    def constant(self, value: Any, dtype: str = "int64") -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape), "float32")

    def heads(self, states: str, output: str | None = None) -> str:
        """(batch, positions, HEADS * HEAD) to (batch, heads, positions, head)."""
        split = self.op("Reshape", states, self.constant([0, -1, HEADS, HEAD]))
        return self.op("Transpose", split, output=output, perm=[0, 2, 1, 3])

    def attend(self, query: str, key: str, value: str, hidden: str) -> str:
        """Attention over keys; `hidden` (batch or 1, 1, 1, positions) is added to the scores."""
        scores = self.op("Add", self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2])), hidden)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        return self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.constant([0, -1, HEADS * HEAD]))

    def hide(self, visible: str) -> str:
        """0 where `visible` is 1, else -1e9."""
        floats = self.op("Cast", visible, to=TensorProto.FLOAT)
        return self.op("Mul", self.op("Sub", floats, self.constant(1, "float32")), self.constant(1e9, "float32"))

    def save(self, writer: BundleWriter, variant: str, outputs: dict[str, tuple[str, Shape]]) -> GraphSpec:
        def infos(specs: dict[str, tuple[str, Shape]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, DTYPES[dtype], shape) for name, (dtype, shape) in specs.items()]

        graph = helper.make_graph(self.nodes, self.name, infos(self.inputs), infos(outputs), self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        onnx.checker.check_model(model)
        file = writer.add_bytes(model.SerializeToString(), f"graphs/{variant}/{self.name}.onnx")
        return GraphSpec(
            file=file,
            opset=19,
            ir_version=10,
            inputs=specs(self.inputs),
            outputs=specs(outputs),
            parameters=0,
            nodes={},
        )


def specs(tensors: dict[str, tuple[str, Shape]]) -> list[TensorSpec]:
    return [TensorSpec(name=name, dtype=dtype, shape=list(shape)) for name, (dtype, shape) in tensors.items()]


QUESTION: dict[str, tuple[str, Shape]] = {
    "input_ids": ("int64", ["batch", "words"]),
    "attention_mask": ("int64", ["batch", "words"]),
}


def masked_mean(make: GraphMaker, states: str, mask: str) -> str:
    """(batch, 1, width) mean of the states whose mask is 1."""
    weights = make.op("Unsqueeze", make.op("Cast", mask, to=TensorProto.FLOAT), make.constant([2]))
    total = make.op("ReduceSum", make.op("Mul", states, weights), make.constant([1]))
    return make.op("Div", total, make.op("ReduceSum", weights, make.constant([1])))


def vision_trunk(writer: BundleWriter, variant: str) -> GraphSpec:
    make = GraphMaker("vision_trunk", {"pixel_values": ("float32", ["image", 3, SIZE, SIZE])}, 1)
    pooled = make.op("AveragePool", "pixel_values", kernel_shape=[4, 4], strides=[4, 4])
    patches = make.op("Transpose", make.op("Reshape", pooled, make.constant([0, 3, TOKENS])), perm=[0, 2, 1])
    make.op("MatMul", patches, make.weight(3, VISION), output="trunk_states")
    return make.save(writer, variant, {"trunk_states": ("float32", ["image", TOKENS, VISION])})


def question_encoder(writer: BundleWriter, variant: str) -> GraphSpec:
    make = GraphMaker("question_encoder", QUESTION, 2)
    states = make.op("Gather", make.weight(len(VOCABULARY), TEXT), "input_ids")
    make.op("Tanh", make.op("Add", states, masked_mean(make, states, "attention_mask")), output="question_states")
    return make.save(writer, variant, {"question_states": ("float32", ["batch", "words", TEXT])})


def vision_fusion(writer: BundleWriter, variant: str) -> GraphSpec:
    inputs: dict[str, tuple[str, Shape]] = {
        "trunk_states": ("float32", ["image", TOKENS, VISION]),
        "question_states": ("float32", ["batch", "words", TEXT]),
        "attention_mask": QUESTION["attention_mask"],
    }
    make = GraphMaker("vision_fusion", inputs, 3)
    asked = make.op("MatMul", masked_mean(make, "question_states", "attention_mask"), make.weight(TEXT, VISION))
    make.op("Add", "trunk_states", asked, output="image_states")
    return make.save(writer, variant, {"image_states": ("float32", ["batch", TOKENS, VISION])})


def projector(writer: BundleWriter, variant: str) -> GraphSpec:
    make = GraphMaker("projector", {"image_states": ("float32", ["batch", TOKENS, VISION])}, 4)
    make.op("Tanh", make.op("MatMul", "image_states", make.weight(VISION, TEXT)), output="image_embeds")
    return make.save(writer, variant, {"image_embeds": ("float32", ["batch", TOKENS, TEXT])})


def language_encoder(writer: BundleWriter, variant: str) -> GraphSpec:
    make = GraphMaker("language_encoder", {"image_embeds": ("float32", ["batch", TOKENS, TEXT]), **QUESTION}, 5)
    words = make.op("Gather", make.weight(len(VOCABULARY), TEXT), "input_ids")
    states = make.op("Concat", "image_embeds", words, axis=1)
    batch = make.op("Shape", "input_ids", start=0, end=1)
    ones = make.op("Expand", make.constant([[1]]), make.op("Concat", batch, make.constant([TOKENS]), axis=0))
    mask = make.op("Concat", ones, "attention_mask", axis=1, output="encoder_attention_mask")
    make.op("Tanh", make.op("Add", states, masked_mean(make, states, mask)), output="encoder_hidden_states")
    for kind in ("key", "value"):
        projected = make.op("MatMul", "encoder_hidden_states", make.weight(TEXT, HEADS * HEAD))
        make.heads(projected, output=f"cross_{kind}.0")
    outputs: dict[str, tuple[str, Shape]] = {
        "encoder_hidden_states": ("float32", ["batch", "positions", TEXT]),
        "encoder_attention_mask": ("int64", ["batch", "positions"]),
        "cross_key.0": ("float32", CROSS),
        "cross_value.0": ("float32", CROSS),
    }
    return make.save(writer, variant, outputs)


def language_decoder(writer: BundleWriter, variant: str, capacity: int | str, *, prompted: bool = False) -> GraphSpec:
    """One token a run; where it is `prompted`, prompts at once, about a picture's keys, which have no mask."""
    length: int | str = "length" if prompted else 1
    cross: Shape = ["batch", HEADS, TOKENS, HEAD] if prompted else CROSS
    past: Shape = ["batch", HEADS, capacity, HEAD]
    inputs: dict[str, tuple[str, Shape]] = {
        "decoder_input_ids": ("int64", ["batch", length]),
        "cache_length": ("int64", [1]),
        "past_key.0": ("float32", past),
        "past_value.0": ("float32", past),
        "cross_key.0": ("float32", cross),
        "cross_value.0": ("float32", cross),
    }
    if not prompted:
        inputs["encoder_attention_mask"] = ("int64", ["batch", "positions"])
    make = GraphMaker("language_decoder", inputs, 6)
    new = make.op("Squeeze", make.op("Shape", "decoder_input_ids", start=1, end=2))
    new_places = make.op("Range", make.constant(0), new, make.constant(1))
    place = make.op("Gather", make.weight(64, TEXT), make.op("Add", "cache_length", new_places))  # (length, text)
    token = make.op("Gather", make.weight(len(VOCABULARY), TEXT), "decoder_input_ids")
    state = make.op("Add", token, place)  # (batch, length, text)
    query = make.heads(make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD)))
    make.heads(make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD)), output="new_key.0")
    make.heads(make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD)), output="new_value.0")
    own = make.attend(
        query,
        make.op("Concat", "past_key.0", "new_key.0", axis=2),
        make.op("Concat", "past_value.0", "new_value.0", axis=2),
        make.hide(visible_slots(make, new_places)),
    )
    mask = make.constant([[1] * TOKENS]) if prompted else "encoder_attention_mask"
    other = make.attend(
        query, "cross_key.0", "cross_value.0", make.hide(make.op("Unsqueeze", mask, make.constant([1, 2])))
    )
    mixed = make.op("Add", make.op("Add", own, other), make.op("MatMul", state, make.weight(TEXT, HEADS * HEAD)))
    last = make.op("Gather", mixed, make.constant(-1), axis=1)
    logits = make.op("MatMul", last, make.weight(HEADS * HEAD, len(VOCABULARY)))
    make.op("Mul", logits, make.constant(0.4, "float32"), output="logits")
    outputs: dict[str, tuple[str, Shape]] = {
        "logits": ("float32", ["batch", len(VOCABULARY)]),
        "new_key.0": ("float32", ["batch", HEADS, length, HEAD]),
        "new_value.0": ("float32", ["batch", HEADS, length, HEAD]),
    }
    return make.save(writer, variant, outputs)


def visible_slots(make: GraphMaker, new_places: str) -> str:
    """(1, 1, length, capacity + length): 1 for the slots below `cache_length` and for the new keys up to a token's own."""
    capacity = make.op("Squeeze", make.op("Shape", "past_key.0", start=2, end=3))
    slots = make.op("Range", make.constant(0), capacity, make.constant(1))
    column = make.op("Unsqueeze", new_places, make.constant([1]))
    own = make.op("LessOrEqual", make.op("Unsqueeze", new_places, make.constant([0])), column)  # (length, length)
    filled = make.op("Unsqueeze", make.op("Less", slots, "cache_length"), make.constant([0]))
    rows = make.op("Concat", make.op("Shape", new_places), make.op("Shape", slots), axis=0)
    seen = make.op("Concat", make.op("Expand", filled, rows), own, axis=1)
    return make.op("Unsqueeze", make.op("Cast", seen, to=TensorProto.INT64), make.constant([0, 1]))


def tokenizer_json() -> bytes:
    """A word-level tokenizer that puts `</s>` at the end."""
    end = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"</s>": end},
            },
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: number for number, word in enumerate(VOCABULARY)},
                "unk_token": "<unk>",
            },
        }
    ).encode()


def write_toy(path: Path, *, fused: bool = True, capacity: int | str = "capacity", pipeline: str | None = None) -> Path:
    """Write the toy bundle to `path`."""
    with BundleWriter(path) as writer:
        graphs = {"vision_trunk": vision_trunk(writer, "fp32")}
        if fused:
            graphs["question_encoder"] = question_encoder(writer, "fp32")
            graphs["vision_fusion"] = vision_fusion(writer, "fp32")
        graphs["projector"] = projector(writer, "fp32")
        graphs["language_encoder"] = language_encoder(writer, "fp32")
        graphs["language_decoder"] = language_decoder(writer, "fp32", capacity)
        variant = VariantSpec(precision="fp32", numerics="fp32", weights=None, graphs=graphs)
        text = TextSpec(
            tokenizer=writer.add_bytes(tokenizer_json(), "tokenizer.json"),
            cleaning="qavit_question",
            max_tokens=12,
            pad_token_id=0,
            eos_token_id=1,
            special_token_ids=[0, 1, 2],
        )
        writer.finish(
            Manifest(
                schema_version=1,
                edgevqa_version="0",
                created="2026-01-01T00:00:00Z",
                family="toy",
                task="visual-question-answering",
                pipeline=pipeline or "encoder_decoder",
                target="cpu",
                image=ImageSpec(
                    height=SIZE,
                    width=SIZE,
                    resize={"shortest_edge": SIZE},
                    resample="bicubic",
                    crop={"height": SIZE, "width": SIZE},
                    rescale_factor=1 / 255,
                    mean=[0.5, 0.5, 0.5],
                    std=[0.2, 0.2, 0.2],
                ),
                text=text,
                generation=GenerationSpec(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, max_new_tokens=6),
                variants={"fp32": variant},
                source=SourceSpec(kind="reference", id="toy", revision=None, sha256="0" * 64, parameters=0),
                model={},
            )
        )
    return path


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with fusion."""
    return write_toy(tmp_path_factory.mktemp("toy") / "fused")


@pytest.fixture(scope="session")
def plain_toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model without fusion."""
    return write_toy(tmp_path_factory.mktemp("toy") / "plain", fused=False)


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[..., Path]:
    """Write a toy bundle with other settings (see `write_toy`)."""

    def make(**settings: Any) -> Path:
        return write_toy(tmp_path / "toy", **settings)

    return make


@pytest.fixture(scope="session")
def decoder_only_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy of `decoder_only_toy.py`."""
    from tests.runtime.pipelines.decoder_only_toy import write_decoder_only

    return write_decoder_only(tmp_path_factory.mktemp("toy") / "decoder_only")


@pytest.fixture
def make_decoder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a decoder-only toy with other settings (see `write_decoder_only`); its processor is known by the name `toy`."""
    from edgevqa.runtime.preprocessing import PROCESSORS
    from tests.runtime.pipelines.decoder_only_toy import PROCESSOR, write_decoder_only

    monkeypatch.setitem(PROCESSORS, "toy", PROCESSOR)

    def make(**settings: Any) -> Path:
        return write_decoder_only(tmp_path / f"decoder_only.{len(list(tmp_path.iterdir()))}", **settings)

    return make


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Three pictures of different sizes."""
    random = np.random.default_rng(7)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((12, 9), (8, 8), (20, 31))]
