"""Greedy and beam search and scoring against brute force, and against `generate` of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.decoding import (
    Limits,
    beam_search,
    greedy_search,
    greedy_steps,
    log_softmax,
    score_answers,
    softmax,
)
from edgevqa.runtime.errors import CheckFailed

VOCABULARY, START, END, PAD = 5, 0, 1, 2


class TableModel:
    """Logits that depend on the question and on every token so far, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def logits(self, question: int, prefix: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([self.seed, question, *prefix]).normal(scale=1.5, size=VOCABULARY)

    def total(self, question: int, tokens: tuple[int, ...]) -> float:
        steps = (log_softmax(self.logits(question, tokens[:length])) for length in range(len(tokens)))
        return float(sum(step[token] for step, token in zip(steps, tokens, strict=True)))

    def endings(self, limit: int) -> list[tuple[int, ...]]:
        """Every token sequence that can be generated: ended, or as long as the limit."""
        found = []
        for length in range(1, limit + 1):
            for tokens in itertools.product(range(VOCABULARY), repeat=length):
                if END not in tokens[:-1] and (tokens[-1] == END or length == limit):
                    found.append(tokens)
        return found


class TableDecoder:
    """A decoder over the table; `reorder` moves the prefixes, as a cache of keys and values would."""

    def __init__(self, model: TableModel, questions: list[int]) -> None:
        self.model = model
        self.questions = questions
        self.rows = len(questions)
        self.prefixes: list[tuple[int, ...]] = [()] * self.rows
        self.steps = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.shape == (self.rows,)
        if self.steps == 0:
            assert tokens.tolist() == [START] * self.rows
        else:
            self.prefixes = [(*prefix, int(token)) for prefix, token in zip(self.prefixes, tokens, strict=True)]
        self.steps += 1
        pairs = zip(self.questions, self.prefixes, strict=True)
        return np.stack([self.model.logits(*pair) for pair in pairs]).astype(np.float32)

    def reorder(self, rows: np.ndarray) -> None:
        assert [self.questions[row] for row in rows] == self.questions, "a beam left its question"
        self.prefixes = [self.prefixes[row] for row in rows]


def limits(max_new_tokens: int) -> Limits:
    return Limits(start_token_id=START, eos_token_id=END, pad_token_id=PAD, max_new_tokens=max_new_tokens)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_takes_the_best_token_and_stops_at_the_end(seed: int) -> None:
    model = TableModel(seed)
    found = greedy_search(TableDecoder(model, [0, 1, 2]), limits(6))
    for question, generated in enumerate(found):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 6 and END not in tokens:
            tokens = (*tokens, int(model.logits(question, tokens).argmax()))
        assert generated.tokens == tokens
        assert generated.total_log_probability == pytest.approx(model.total(question, tokens), abs=1e-5)
        assert generated.mean_log_probability == pytest.approx(model.total(question, tokens) / len(tokens), abs=1e-5)


def test_greedy_stops_when_every_row_has_ended() -> None:
    class Ends(TableModel):
        def logits(self, question: int, prefix: tuple[int, ...]) -> np.ndarray:
            return np.asarray(np.eye(VOCABULARY)[END if len(prefix) == question else 3] * 9)

    decoder = TableDecoder(Ends(0), [1, 3])
    assert [found.tokens for found in greedy_search(decoder, limits(20))] == [(3, END), (3, 3, 3, END)]
    assert decoder.steps == 4
    steps = list(greedy_steps(TableDecoder(Ends(0), [1, 3]), limits(20)))
    assert [step[0].tolist() for step in steps] == [[3, 3], [END, 3], [PAD, 3], [PAD, END]]
    assert steps[2][1][0] == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_a_beam_as_wide_as_all_sequences_finds_the_best_of_them(seed: int) -> None:
    model, longest = TableModel(seed), 3
    endings = model.endings(longest)
    found = beam_search(TableDecoder(model, [4] * 128), limits(longest), width=128)
    best = max(endings, key=lambda tokens: model.total(4, tokens) / len(tokens))
    assert found[0].tokens == best
    assert found[0].total_log_probability == pytest.approx(model.total(4, best), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    model = TableModel(seed)
    assert beam_search(TableDecoder(model, [3, 5]), limits(7), width=1) == greedy_search(
        TableDecoder(model, [3, 5]), limits(7)
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [2, 3, 4])
def test_beams_in_a_batch_find_what_they_find_alone(seed: int, width: int) -> None:
    model = TableModel(seed)
    batch = beam_search(TableDecoder(model, [q for q in range(4) for _ in range(width)]), limits(6), width=width)
    alone = [beam_search(TableDecoder(model, [q] * width), limits(6), width=width)[0] for q in range(4)]
    assert batch == alone
    for question, found in enumerate(batch):
        assert found.total_log_probability == pytest.approx(model.total(question, found.tokens), abs=1e-5)


def test_wider_beams_are_needed_for_some_of_these() -> None:
    """The comparisons above would pass with a search that is greedy in disguise; these would not."""
    differing = 0
    for seed in range(20):
        model = TableModel(seed)
        greedy = greedy_search(TableDecoder(model, [0]), limits(6))
        differing += greedy != beam_search(TableDecoder(model, [0] * 4), limits(6), width=4)
    assert differing >= 3


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_given_answers(seed: int) -> None:
    model = TableModel(seed)
    answers = [(3, END), (4, 4, 2, END), (END,), (3, 3, 3)]
    scored = score_answers(TableDecoder(model, [7] * 4), answers, limits(9))
    for answer, found in zip(answers, scored, strict=True):
        assert found.tokens == answer
        assert found.total_log_probability == pytest.approx(model.total(7, answer), abs=1e-5)


def test_what_greedy_generates_scores_the_same_when_given() -> None:
    model = TableModel(1)
    generated = greedy_search(TableDecoder(model, [2]), limits(6))[0]
    scored = score_answers(TableDecoder(model, [2]), [generated.tokens], limits(6))[0]
    assert scored.total_log_probability == pytest.approx(generated.total_log_probability, abs=1e-9)


def test_softmax_adds_up_to_one_without_overflow() -> None:
    shares = softmax([-1000.0, -1001.0, -5000.0])
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx(1 / (1 + np.exp(-1)))
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1e4, 1e4 - 1, 0]]))).sum(), 1.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_overflow_is_an_error_not_an_answer(wrong: float) -> None:
    class Overflows(TableModel):
        def logits(self, question: int, prefix: tuple[int, ...]) -> np.ndarray:
            return np.array([0.0, wrong, 1, 2, 3])

    with pytest.raises(CheckFailed, match="logits that are not finite numbers"):
        greedy_search(TableDecoder(Overflows(0), [0]), limits(3))


@pytest.fixture(scope="module")
def generate() -> Callable[[TableModel, int, int], list[list[int]]]:
    """`generate` of transformers over the table: a tiny T5 whose scores a logits processor replaces."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1, decoder_start_token_id=START
    )
    model = transformers.T5ForConditionalGeneration(config).eval()

    def run(table: TableModel, questions: int, width: int) -> list[list[int]]:
        def table_scores(ids: Any, scores: Any) -> Any:
            rows = (log_softmax(table.logits(row // width, tuple(ids[row, 1:].tolist()))) for row in range(len(ids)))
            return torch.from_numpy(np.stack(list(rows)).astype(np.float32))

        found = model.generate(
            input_ids=torch.ones((questions, 2), dtype=torch.int64),
            num_beams=width,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
            logits_processor=transformers.LogitsProcessorList([table_scores]),
        )
        ids: list[list[int]] = found[:, 1:].tolist()
        return [row[: row.index(END) + 1] if END in row else row for row in ids]

    return run


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_equal_to_generate_of_transformers(
    generate: Callable[[TableModel, int, int], list[list[int]]], seed: int, width: int
) -> None:
    questions, model = 40, TableModel(seed)
    decoder = TableDecoder(model, [question for question in range(questions) for _ in range(width)])
    found = greedy_search(decoder, limits(6)) if width == 1 else beam_search(decoder, limits(6), width=width)
    assert [list(generated.tokens) for generated in found] == generate(model, questions, width)
    assert len({len(generated.tokens) for generated in found}) >= 4
