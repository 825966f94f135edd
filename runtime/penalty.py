"""The repetition penalty of CTRL (Keskar et al. 2019): tokens that were read or generated become less likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevqa.runtime.decoding import Decoder, Integers
from edgevqa.runtime.sessions.base import Array


class PenalizedDecoder:
    """A decoder whose logits are divided by `penalty` where they are positive, else multiplied, for every token seen.

    `prompts` are the tokens that each row has read already. With `starts` False the first token fed is a placeholder, which
    the decoder does not read. Beams are penalised before their logits are normalised; `generate` of transformers does it after.
    """

    def __init__(self, decoder: Decoder, penalty: float, prompts: Sequence[Sequence[int]], *, starts: bool) -> None:
        self.rows = decoder.rows
        self._decoder = decoder
        self._penalty = penalty
        self._prompts = prompts
        self._reads = starts
        self._seen: Array | None = None  # bool (rows, vocab), made when the vocabulary is known

    def step(self, tokens: Integers) -> Array:
        """As the decoder's own."""
        logits = self._decoder.step(tokens).astype(np.float32)
        if self._seen is None:
            self._seen = np.zeros(logits.shape, dtype=bool)
            for row, prompt in enumerate(self._prompts):
                self._seen[row, [token for token in prompt if token < logits.shape[1]]] = True
        if self._reads:
            self._seen[np.arange(self.rows), tokens] = True
        self._reads = True
        penalized = np.where(logits > 0, logits / self._penalty, logits * self._penalty)
        return np.where(self._seen, penalized, logits)

    def reorder(self, rows: Integers) -> None:
        """As the decoder's own."""
        self._decoder.reorder(rows)
        if self._seen is not None:
            self._seen = self._seen[rows]
