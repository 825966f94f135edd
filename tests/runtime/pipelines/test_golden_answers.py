"""Bundles exported from the golden variants answer as the published implementation does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevqa.runtime import Pipeline

TOKENS = 12  # what the golden ids were generated with
ENTRY = tuple[np.ndarray, str, str, list[int]]


def entries(arrays: dict[str, np.ndarray], cases: tuple[str, ...]) -> list[ENTRY]:
    """Picture, question, answer and ids of each question of some cases."""
    found: list[ENTRY] = []
    for case in cases:
        for number, index in enumerate(arrays[f"{case}_image_index"]):
            ids = arrays[f"{case}_generated_ids"][number].tolist()[1:]
            ids = ids[: ids.index(1) + 1] if 1 in ids else ids
            question, answer = (str(arrays[f"{case}_{key}"][number]) for key in ("questions_raw", "answers"))
            found.append((arrays[f"image{index}"], question, answer, ids))
    return found


@pytest.mark.parametrize("name", ["late", "plain"])
def test_golden_answers_alone_in_a_batch_and_from_the_caches(
    name: str,
    golden: Callable[[str], dict[str, np.ndarray]],
    golden_bundle: Callable[[str], Path],
) -> None:
    wanted = entries(golden(name), ("s0", "s1", "s2"))
    with Pipeline.load(golden_bundle(name)) as pipeline:
        alone = [pipeline.answer(picture, text, max_new_tokens=TOKENS) for picture, text, _, _ in wanted]
        pipeline.clear_caches()
        for _ in range(2):
            batch = pipeline.answer_pairs([entry[:2] for entry in wanted], max_new_tokens=TOKENS)
            for (_, _, text, ids), one, other in zip(wanted, alone, batch, strict=True):
                assert one.text == other.text == text
                assert list(one.tokens) == list(other.tokens) == ids
                assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        assert pipeline.statistics.image_hits >= 3


def test_the_plain_model_gives_the_golden_answers_of_the_padded_batch(
    golden: Callable[[str], dict[str, np.ndarray]], golden_bundle: Callable[[str], Path]
) -> None:
    """Without fusion the published code honours the mask, so its batch can be compared as it is."""
    wanted = entries(golden("plain"), ("b",))
    with Pipeline.load(golden_bundle("plain")) as pipeline:
        answers = pipeline.answer_pairs([entry[:2] for entry in wanted], max_new_tokens=TOKENS)
    assert [answer.text for answer in answers] == [text for _, _, text, _ in wanted]


def test_a_streamed_answer_is_the_golden_one(
    golden: Callable[[str], dict[str, np.ndarray]], golden_bundle: Callable[[str], Path]
) -> None:
    with Pipeline.load(golden_bundle("late")) as pipeline:
        for picture, question, text, ids in entries(golden("late"), ("s0", "s1", "s2")):
            stream = pipeline.stream(picture, question, max_new_tokens=TOKENS)
            assert "".join(stream) == text
            assert list(stream.answer.tokens) == ids


def test_the_choice_that_greedy_would_generate_wins(
    golden: Callable[[str], dict[str, np.ndarray]], golden_bundle: Callable[[str], Path]
) -> None:
    """`trees` begins the golden answer: of words of one or two tokens it is by far the likeliest."""
    picture, question, text, _ = entries(golden("late"), ("s0",))[0]
    assert text.startswith("trees")
    with Pipeline.load(golden_bundle("late")) as pipeline:
        answer = pipeline.answer(picture, question, choices=["yes", "trees", "no", "9"])
    assert answer.text == "trees"
    assert answer.scores is not None
    assert answer.confidence == max(answer.scores.values())
