"""Choosing tokens from logits: greedy and beam search, and the likelihood of given answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.errors import NotFiniteError
from edgevqa.runtime.manifest import GenerationSpec
from edgevqa.runtime.sessions.base import Array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Decoder(Protocol):
    """One decoding in progress over `rows` rows, each with its own past."""

    rows: int

    def step(self, tokens: Integers) -> Array:
        """Feed one token a row, int64 (rows,); returns the logits of the next, (rows, vocab)."""
        ...

    def reorder(self, rows: Integers) -> None:
        """Let row i continue the past of row `rows[i]`."""
        ...


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where decoding begins and ends. `max_new_tokens` counts generated tokens, the end token included.

    An answer ends with `eos_token_id` or one of `more_eos_token_ids`.
    """

    start_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_new_tokens: int
    more_eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, spec: GenerationSpec, max_new_tokens: int) -> Limits:
        """The limits that a manifest gives."""
        return cls(
            start_token_id=spec.decoder_start_token_id,
            eos_token_id=spec.eos_token_id,
            pad_token_id=spec.pad_token_id,
            max_new_tokens=max_new_tokens,
            more_eos_token_ids=tuple(spec.more_eos_token_ids),
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """Every token that ends an answer."""
        return (self.eos_token_id, *self.more_eos_token_ids)


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens generated for one row (the end token too, where it came) and the sum of their log-probabilities."""

    tokens: tuple[int, ...]
    total_log_probability: float

    def cut_by(self, ends: Sequence[int]) -> bool:
        """Whether none of the tokens that end an answer came, of a model that has such."""
        return bool(ends) and (not self.tokens or self.tokens[-1] not in ends)

    @property
    def mean_log_probability(self) -> float:
        return self.total_log_probability / max(len(self.tokens), 1)


def log_softmax(logits: Array) -> Floats:
    """Log-probabilities over the last axis, float64. Raises `NotFiniteError` for NaN and infinity."""
    values = logits.astype(np.float64)
    highest = values.max(axis=-1, keepdims=True)
    if not np.isfinite(highest).all():
        raise NotFiniteError("logits")
    values -= highest
    normalised: Floats = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return normalised


def greedy_steps(decoder: Decoder, limits: Limits) -> Iterator[tuple[Integers, Floats]]:
    """The most probable token of every row and its log-probability, (rows,) each, step by step.

    Rows that have ended give `pad_token_id` and 0.0; it stops when all have, or after `max_new_tokens`.
    """
    tokens = np.full(decoder.rows, limits.start_token_id, dtype=np.int64)
    running = np.ones(decoder.rows, dtype=bool)
    for _ in range(limits.max_new_tokens):
        log_probabilities = log_softmax(decoder.step(tokens))
        best = log_probabilities.argmax(axis=-1)
        gained = log_probabilities[np.arange(decoder.rows), best]
        tokens = np.where(running, best, limits.pad_token_id).astype(np.int64)
        yield tokens, np.where(running, gained, 0.0)
        running &= ~np.isin(tokens, limits.ends)
        if not running.any():
            return


def greedy_search(decoder: Decoder, limits: Limits) -> list[Generated]:
    """Greedy decoding of all rows; one `Generated` a row."""
    steps = list(greedy_steps(decoder, limits))
    tokens = np.stack([step[0] for step in steps], axis=1)  # (rows, steps)
    gained = np.stack([step[1] for step in steps], axis=1)
    found: list[Generated] = []
    for row in range(decoder.rows):
        ends = np.flatnonzero(np.isin(tokens[row], limits.ends))
        length = int(ends[0]) + 1 if len(ends) else tokens.shape[1]
        total = float(gained[row, :length].sum())
        found.append(Generated(tokens=tuple(tokens[row, :length].tolist()), total_log_probability=total))
    return found


def search(decoder: Decoder, limits: Limits, *, num_beams: int, length_penalty: float = 1.0) -> list[Generated]:
    """Greedy decoding with one beam, beam search with more."""
    if num_beams == 1:
        return greedy_search(decoder, limits)
    return beam_search(decoder, limits, width=num_beams, length_penalty=length_penalty)


class _Hypothesis(msgspec.Struct, frozen=True):
    tokens: tuple[int, ...]
    total: float
    score: float  # total divided by length ** length_penalty


class _Beam:
    """The beams of one question. The rules are those of `generate(num_beams=k, early_stopping=False)`.

    Of the 2k best continuations, those among the first k that end are kept as finished (the k best of them), and the
    best k that do not end run on. It is over when k are finished and the best running one, at its present length, is
    no better than the worst of them.
    """

    def __init__(self, width: int, limits: Limits, length_penalty: float) -> None:
        self.width = width
        self.limits = limits
        self.length_penalty = length_penalty
        self.running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self.finished: list[_Hypothesis] = []
        self.over = False

    def advance(self, log_probabilities: Floats) -> list[int]:
        """Take (width, vocab) log-probabilities; returns which row each running beam continues, `width` of them."""
        vocabulary = log_probabilities.shape[1]
        rows = len(self.running)
        totals = log_probabilities[:rows] + np.array([total for _, total in self.running])[:, None]
        flat = totals.reshape(-1)
        order = np.argsort(-flat, kind="stable")[: 2 * self.width]
        parents: list[int] = []
        running: list[tuple[tuple[int, ...], float]] = []
        for rank, index in enumerate(order.tolist()):
            parent, token = divmod(int(index), vocabulary)
            tokens: tuple[int, ...] = (*self.running[parent][0], token)
            total = float(flat[index])
            if token in self.limits.ends or len(tokens) >= self.limits.max_new_tokens:
                if rank < self.width:
                    self._finish(tokens, total)
            elif len(running) < self.width:
                running.append((tokens, total))
                parents.append(parent)
        self._continue(running)
        return parents + [0] * (self.width - len(parents))

    def _finish(self, tokens: tuple[int, ...], total: float) -> None:
        if self.over:
            return
        score = total / len(tokens) ** self.length_penalty
        self.finished.append(_Hypothesis(tokens, total, score))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]

    def _continue(self, running: list[tuple[tuple[int, ...], float]]) -> None:
        if not running:
            self.over = True
            return
        self.running = running
        if len(self.finished) == self.width:
            tokens, total = running[0]
            self.over |= total / len(tokens) ** self.length_penalty <= self.finished[-1].score

    def last_tokens(self) -> list[int]:
        """The tokens to feed next, `width` of them; rows that hold no beam get the pad token."""
        tokens = [tokens[-1] for tokens, _ in self.running if tokens]
        return tokens + [self.limits.pad_token_id] * (self.width - len(tokens))


def beam_search(decoder: Decoder, limits: Limits, *, width: int, length_penalty: float = 1.0) -> list[Generated]:
    """Beam search; `decoder.rows` is a multiple of `width`, whose consecutive rows belong to one question.

    Returns the best hypothesis of each question by log-probability divided by length ** `length_penalty`.
    """
    beams = [_Beam(width, limits, length_penalty) for _ in range(decoder.rows // width)]
    tokens = np.full(decoder.rows, limits.start_token_id, dtype=np.int64)
    for _ in range(limits.max_new_tokens):
        log_probabilities = log_softmax(decoder.step(tokens)).reshape(len(beams), width, -1)
        parents = [beam.advance(log_probabilities[number]) for number, beam in enumerate(beams)]
        if all(beam.over for beam in beams):
            break
        offsets = np.arange(len(beams))[:, None] * width
        decoder.reorder((np.array(parents, dtype=np.int64) + offsets).reshape(-1))
        tokens = np.array([beam.last_tokens() for beam in beams], dtype=np.int64).reshape(-1)
    best = [beam.finished[0] for beam in beams]
    return [Generated(tokens=found.tokens, total_log_probability=found.total) for found in best]


def score_answers(decoder: Decoder, answers: Sequence[Sequence[int]], limits: Limits) -> list[Generated]:
    """Feed row i the tokens `answers[i]` (end token included) and sum their log-probabilities: teacher forcing."""
    longest = max(len(answer) for answer in answers)
    targets = np.full((len(answers), longest), limits.pad_token_id, dtype=np.int64)
    for row, answer in enumerate(answers):
        targets[row, : len(answer)] = answer
    lengths = np.array([len(answer) for answer in answers])
    totals = np.zeros(len(answers))
    tokens = np.full(len(answers), limits.start_token_id, dtype=np.int64)
    for position in range(longest):
        log_probabilities = log_softmax(decoder.step(tokens))
        gained = log_probabilities[np.arange(len(answers)), targets[:, position]]
        totals += np.where(position < lengths, gained, 0.0)
        tokens = targets[:, position]
    return [
        Generated(tokens=tuple(answer), total_log_probability=float(total))
        for answer, total in zip(answers, totals, strict=True)
    ]


def softmax(values: Sequence[float]) -> list[float]:
    """Shares of the exponentials, which sum to 1."""
    exponentials = np.exp(np.array(values, dtype=np.float64) - max(values))
    shares: list[float] = (exponentials / exponentials.sum()).tolist()
    return shares
