"""The process that `benchmarks.weight_only` measures: decoders of several bundles, token by token.

python -m benchmarks.weight_only_run BACKEND THREADS TOKENS memory|turns VARIANT=BUNDLE...
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import make_cache
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Session, SessionOptions

GRAPH = "language_decoder"
WARM = 3  # first tokens, which are not counted
PROMPT = 64
Logits = NDArray[np.float64]


class Decoder:
    """One decoder with its cache, fed with token after token."""

    def __init__(self, bundle: Path, variant: str, backend: str, *, threads: int, capacity: int) -> None:
        started = time.perf_counter()
        self.session: Session = open_session(
            Bundle.open(bundle, check=False), variant, GRAPH, backend=backend, options=SessionOptions(threads=threads)
        )
        self.load_s = time.perf_counter() - started
        self.capacity = capacity
        self.hidden = next(int(spec.shape[2]) for spec in self.session.inputs if spec.name == "image_embeds")
        self.cache: Any = make_cache(self.session, 1, capacity)
        self.seconds: list[float] = []

    def feed(self, ids: list[int], *, keep: bool = True) -> Logits:
        """Logits after the last of `ids`; `keep`: they stay in the past."""
        first, count = self.cache.length, len(ids)
        past = np.zeros((1, self.capacity), dtype=np.int64)
        past[:, :first] = 1
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "image_embeds": np.zeros((1, 1, self.hidden), dtype=np.float32),
            "image_index": np.full((1, count), -1, dtype=np.int64),
            "position_ids": np.arange(first, first + count, dtype=np.int64)[None],
            "past_attention_mask": past,
            "attention_mask": np.ones((1, count), dtype=np.int64),
            **self.cache.inputs(),
        }
        started = time.perf_counter()
        found = self.session.run(inputs)
        logits = found["logits"].numpy()
        self.seconds.append(time.perf_counter() - started)
        if keep:
            self.cache.append(found)
        return np.asarray(logits[0], dtype=np.float64)


def log_softmax(logits: Logits) -> Logits:
    """Log-probabilities."""
    shifted = logits - logits.max()
    found: Logits = shifted - np.log(np.exp(shifted).sum())
    return found


def turns(decoders: list[Decoder], tokens: int) -> list[dict[str, Any]]:
    """Every decoder reads one text, which the first one draws token by token, each in turn; then prompts in turns.

    Perplexity is of that text: as the float model drew it, it is the least that any model can have on average.
    """
    rng = np.random.default_rng(0)
    text = [1]
    seen: list[list[Logits]] = [[] for _ in decoders]
    for step in range(tokens + WARM):
        order = np.roll(np.arange(len(decoders)), step)
        for number in order.tolist():
            seen[number].append(log_softmax(decoders[number].feed([text[-1]])))
        probabilities = np.exp(seen[0][-1])
        text.append(int(rng.choice(len(probabilities), p=probabilities / probabilities.sum())))
    steps = [decoder.seconds[WARM:] for decoder in decoders]
    for round_number in range(4):
        for number in np.roll(np.arange(len(decoders)), round_number).tolist():
            decoders[number].cache.length = 0
            decoders[number].feed([3 + each for each in range(PROMPT)], keep=False)
    rows: list[dict[str, Any]] = []
    for number, decoder in enumerate(decoders):
        own, base = seen[number], seen[0]
        losses = [-own[place][text[place + 1]] for place in range(len(own))]
        kl = [float((np.exp(b) * (b - o)).sum()) for b, o in zip(base, own, strict=True)]
        rows.append(
            {
                **spread("token_ms", steps[number]),
                "tokens_per_s": round(1 / statistics.median(steps[number]), 2),
                **spread(f"prompt_{PROMPT}_ms", decoder.seconds[-3:]),
                "perplexity": round(float(np.exp(np.mean(losses))), 4),
                "kl_from_float": float(f"{np.mean(kl):.3g}"),
                "top1_agreement": round(
                    100 * float(np.mean([b.argmax() == o.argmax() for b, o in zip(base, own, strict=True)])), 1
                ),
            }
        )
    return rows


def spread(name: str, seconds: list[float]) -> dict[str, Any]:
    """Median, first and third quartile in milliseconds."""
    low, middle, high = (float(each) * 1000 for each in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return {name: round(middle, 1), f"{name}_quartiles": [round(low, 1), round(high, 1)]}


def main() -> None:
    """Print one line of JSON."""
    backend, threads, tokens, what, *pairs = sys.argv[1:]
    capacity = int(tokens) + WARM + 1
    split = [pair.partition("=") for pair in pairs]
    decoders = [
        Decoder(Path(path), variant, backend, threads=int(threads), capacity=capacity) for variant, _, path in split
    ]
    if what == "memory":
        for token in range(3, 9):
            decoders[0].feed([token])
        print(json.dumps({"load_s": round(decoders[0].load_s, 1)}))
    else:
        print(json.dumps(turns(decoders, int(tokens))))


if __name__ == "__main__":
    main()
