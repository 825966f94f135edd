"""Our side: the graphs of a bundle, one after another, through the runtime's sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import make_cache
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.pipelines.image_side import STAGES
from edgevqa.runtime.pipelines.positions import place
from edgevqa.runtime.pipelines.values import Value
from edgevqa.runtime.sessions.base import SessionOptions

Array: TypeAlias = NDArray[Any]
ENCODER, DECODER = "language_encoder", "language_decoder"


def open_graphs(bundle: Bundle) -> Graphs:
    """Every graph of the bundle in ONNX Runtime on the CPU, with one thread."""
    return Graphs.load(bundle, "fp32", "onnxruntime", SessionOptions(threads=1))


def run_one(graphs: Graphs, name: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Run a graph with those of the inputs that it takes."""
    return {**graphs.run(name, {each: inputs[each] for each in graphs.inputs(name)})}


def see(graphs: Graphs, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """From pixels (and what a Q-Former reads) to `image_embeds`, or to the keys and values that a captioner attends to."""
    known = dict(inputs)
    for name in STAGES:
        if name in graphs:
            known |= run_one(graphs, name, known)
    return known


def encode_decode(graphs: Graphs, inputs: Mapping[str, Value], start: Array) -> dict[str, Value]:
    """Logits of the token after `start` (batch, tokens), which the decoder reads at once."""
    return {"logits": Decoding(graphs, inputs, *start.shape).step(start)}


class Decoding:
    """A decoder with its encoder's states and a cache, that can be set back."""

    def __init__(self, graphs: Graphs, inputs: Mapping[str, Value], batch: int, capacity: int) -> None:
        encoded = see(graphs, inputs)
        if ENCODER in graphs:
            encoded = run_one(graphs, ENCODER, {**inputs, **encoded})
        wanted = graphs.inputs(DECODER)
        self._graphs = graphs
        self._context = {name: value for name, value in encoded.items() if name in wanted}
        self.cache = make_cache(graphs.sessions[DECODER], batch, capacity)

    def step(self, tokens: Array) -> Value:
        """Read one token a row, (batch, 1), or a prompt."""
        given: dict[str, Value] = {
            **self._context,
            **self.cache.inputs(),
            "decoder_input_ids": tokens,
            "cache_length": np.array([self.cache.length], dtype=np.int64),
        }
        found = self._graphs.run(DECODER, given)
        self.cache.append(found)
        return found["logits"]


class Prompted:
    """A decoder-only model: prompts with a picture in them, read at once; then tokens, one by one."""

    def __init__(self, graphs: Graphs, *, image_token: int, capacity: int = 1) -> None:
        self._graphs, self._token, self._capacity = graphs, image_token, capacity
        self._wide = len(graphs.input(DECODER, "position_ids").shape) == 3

    def read(self, inputs: Mapping[str, Any], grid: tuple[int, int, int] | None = None) -> Value:
        """Logits after the prompt (batch, vocab). Rows may be padded on the left; every row has its own picture."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        embeds = see(self._graphs, inputs)["image_embeds"]
        images = (ids == self._token) & (mask > 0)
        index = np.where(images, np.cumsum(images, axis=1) - 1, -1)
        positions: Array = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        following = positions[:, -1:] + 1
        if self._wide and grid is not None:
            placed, after = place(ids[0].tolist(), self._token, [grid])
            positions, following = placed[:, None], np.full((1, 1), after)
        self._cache = make_cache(self._graphs.sessions[DECODER], len(ids), self._capacity)
        self._seen = np.zeros((len(ids), self._capacity), dtype=np.int64)
        self._next = np.broadcast_to(following, (3, *following.shape)).copy() if self._wide else following
        found = self._run(ids, mask, positions, embeds, index)
        self._cache.append(found)
        self._seen[:, : self._cache.length] = mask[:, : self._cache.length]
        return found["logits"]

    def step(self, tokens: Array) -> Value:
        """Logits after one more token a row, (batch, 1); its slot is written, and free again for the next call."""
        before = self._cache.length
        spec = self._graphs.input(DECODER, "image_embeds")
        nothing = np.zeros((len(tokens), 1, int(spec.shape[2])), dtype=np.float32)
        ones = np.ones_like(tokens)
        found = self._run(tokens, ones, self._next, nothing, np.full_like(tokens, -1))
        self._cache.append(found)
        self._cache.length = before
        return found["logits"]

    def _run(self, ids: Array, mask: Array, positions: Array, embeds: Value, index: Array) -> dict[str, Value]:
        given: dict[str, Value] = {
            **self._cache.inputs(),
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_attention_mask": self._seen,
            "image_embeds": embeds,
            "image_index": index,
        }
        return {**self._graphs.run(DECODER, given)}


def size_bytes(bundle: Bundle) -> int:
    """Bytes of the graphs and their weights."""
    weights = bundle.weights_path("fp32")
    files = [bundle.graph_path("fp32", name) for name in bundle.variant("fp32").graphs]
    return sum(file.stat().st_size for file in (*files, *([] if weights is None else [weights])))
