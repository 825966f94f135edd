"""One token of a decoder with a past: ours beside another exporter's graph, on the same keys and values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.exporters.bundles import Array, Decoding
from benchmarks.exporters.export_rows import Row
from benchmarks.exporters.peer_graphs import Outcome, PeerGraph, host
from benchmarks.exporters.subjects import prompt
from benchmarks.exporters.timing import compare

if TYPE_CHECKING:
    from benchmarks.exporters.measure import Prepared

SHAPE = (1, 12)  # batch and words
TOKEN = 7
STEP_GRAPHS = ("decoder_with_past_model", "decode")


def encoder_decoder(outcome: Outcome) -> Callable[[Mapping[str, Array]], Mapping[str, Any]]:
    """Optimum's encoder, then its decoder without a past, from pixels and the first tokens to logits."""
    encoder = PeerGraph(Path(outcome.graphs["encoder_model"]))
    decoder = PeerGraph(Path(outcome.graphs["decoder_model"]))

    def forward(feed: Mapping[str, Array]) -> Mapping[str, Any]:
        states = encoder.run(feed)["last_hidden_state"]
        return decoder.run({"input_ids": feed["decoder_input_ids"], "encoder_hidden_states": states})

    return forward


def compare_steps(row: Row, ready: Prepared, outcome: Outcome, seconds: float) -> None:
    """Fill in the row's step, or why there is none."""
    try:
        graph = _step_graph(outcome)
        if graph is None:
            row.step_note = outcome.error or f"no graph of a step among {', '.join(outcome.graphs)}"
            return
        past, expected = _eager(ready)
        feed = {name: _value(name, past) for name in graph.inputs}
        run = _ours(ready)
        logits = next(name for name in graph.outputs if "logits" in name)
        ours, theirs = host(run()), host(graph.run(feed)[logits])
    except Exception as error:  # noqa: BLE001 (whatever ONNX Runtime says of another tool's graph is told)
        row.step_note = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
        return
    theirs = theirs[:, -1] if theirs.ndim == 3 else theirs
    row.step_difference = (float(np.abs(theirs - expected).max()), float(np.abs(ours - expected).max()))
    row.step = compare(run, lambda: graph.run(feed), seconds=seconds)


def _step_graph(outcome: Outcome) -> PeerGraph | None:
    for name, file in outcome.graphs.items():
        if any(part in STEP_GRAPHS for part in Path(name).parts):
            return PeerGraph(Path(file))
    return None


@torch.no_grad()
def _eager(ready: Prepared) -> tuple[dict[str, Array], Array]:
    """What a step may take, by what it is, and the logits that eager PyTorch gives for it."""
    inputs = ready.subject.inputs(ready.model, *SHAPE)
    first = ready.model(**inputs, use_cache=True)
    cache, token = first.past_key_values, torch.full((1, 1), TOKEN)
    values: dict[str, Array] = {}
    parts = {
        "self": getattr(cache, "self_attention_cache", cache),
        "cross": getattr(cache, "cross_attention_cache", None),
    }
    for part, each in parts.items():
        for number, layer in enumerate([] if each is None else each.layers):
            values[f"{part}.{number}.key"] = layer.keys.numpy().copy()
            values[f"{part}.{number}.value"] = layer.values.numpy().copy()
    if "decoder_input_ids" in inputs:
        states = first.encoder_last_hidden_state
        found = ready.model(encoder_outputs=(states,), decoder_input_ids=token, past_key_values=cache)
        values["states"] = states.numpy()
        following = inputs["decoder_input_ids"].shape[1]
    else:
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.int64)
        found = ready.model(input_ids=token, attention_mask=mask, past_key_values=cache)
        following = mask.shape[1] - 1 + int(getattr(ready.model.model, "rope_deltas", None) or 0)
        values["mask"] = mask.numpy()
    values["token"], values["positions"] = token.numpy(), np.full((1, 1), following)
    values["cache_position"] = np.array([values["self.0.key"].shape[2]])
    return values, found.logits[:, -1].numpy()


def _value(name: str, past: Mapping[str, Array]) -> Array:
    """Of an input of that name."""
    number = re.search(r"\.(\d+)\.", name)
    if number is not None:
        part = "cross" if "cross" in name or ".encoder." in name else "self"
        return past[f"{part}.{number[1]}.{'key' if 'key' in name.rpartition('.')[2] else 'value'}"]
    known = {"input_ids": "token", "decoder_input_ids": "token", "encoder_hidden_states": "states"}
    known |= {"attention_mask": "mask", "position_ids": "positions", "cache_position": "cache_position"}
    return past[known[name]]


def _ours(ready: Prepared) -> Callable[[], Any]:
    feed, token = ready.inputs(SHAPE), np.full((1, 1), TOKEN)
    if "decoder_input_ids" not in feed:
        length = feed["input_ids"].shape[1]
        decoder, grid, given = prompt(ready.graphs, ready.bundle.manifest, feed, capacity=length + 1)
        decoder.read(given, grid)
        return lambda: decoder.step(token)
    start = feed["decoder_input_ids"]
    decoding = Decoding(ready.graphs, feed, 1, start.shape[1] + 1)
    decoding.step(start)

    def step() -> Any:
        decoding.cache.length = start.shape[1]
        return decoding.step(token)

    return step
