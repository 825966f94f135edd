"""Questions and answers: equal to the golden texts and ids."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.errors import BundleError, ConfigError, QuestionError
from edgevqa.runtime.manifest import FileSpec, TextSpec
from edgevqa.runtime.text import Question, QuestionTokenizer, clean, pad, settled, tidy

SPEC = TextSpec(
    tokenizer=FileSpec(path="tokenizer.json", sha256="", size_bytes=0),
    cleaning="qavit_question",
    max_tokens=30,
    pad_token_id=0,
    eos_token_id=1,
    special_token_ids=[0, 1, 2],
)


@pytest.fixture(scope="module")
def tokenizer_path(golden_root: Path) -> Path:
    return golden_root / "pretrained" / "t5-tiny" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> QuestionTokenizer:
    return QuestionTokenizer(tokenizer_path, SPEC)


@pytest.fixture(scope="module")
def cases(golden_root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((golden_root / "text_cases.json").read_text())
    return found


def test_golden_cleaning_and_ids(tokenizer: QuestionTokenizer, cases: list[dict[str, Any]]) -> None:
    asked = 0
    for case in cases:
        assert clean(case["raw"], "qavit_question")[0] == case["pre_question"]
        if case["pre_question"].strip():
            question = tokenizer.question(case["raw"])
            assert list(question.ids) == case["input_ids"]
            assert (question.text, question.asked) == (case["raw"], case["pre_question"])
            asked += 1
    assert asked >= 15


def test_golden_questions_and_answers(
    tokenizer: QuestionTokenizer, variant: str, golden: Callable[[str], dict[str, np.ndarray]]
) -> None:
    arrays = golden(variant)
    for case in ("s0", "s1", "s2", "b"):
        questions = [tokenizer.question(str(text)) for text in arrays[f"{case}_questions_raw"]]
        ids, mask = pad(questions, SPEC.pad_token_id)
        np.testing.assert_array_equal(ids, arrays[f"{case}_input_ids"])
        np.testing.assert_array_equal(mask, arrays[f"{case}_attention_mask"])
    for case in ("s0", "s1", "s2", "s3", "b"):
        for tokens, answer in zip(arrays[f"{case}_generated_ids"], arrays[f"{case}_answers"], strict=True):
            assert tokenizer.decode(tokens.tolist()) == answer


def test_without_cleaning_the_caption_prompt_has_its_golden_ids(
    tokenizer_path: Path, golden: Callable[[str], dict[str, np.ndarray]]
) -> None:
    raw = QuestionTokenizer(tokenizer_path, msgspec.structs.replace(SPEC, cleaning="none"))
    arrays = golden("late")
    question = raw.question(str(arrays["s3_questions_raw"][0]))
    assert question.asked == arrays["s3_questions"][0]
    np.testing.assert_array_equal([question.ids], arrays["s3_input_ids"])


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "...", " ;:~ ", "()**##"])
def test_an_empty_question_is_refused(tokenizer: QuestionTokenizer, text: str) -> None:
    with pytest.raises(QuestionError, match="is empty"):
        tokenizer.question(text)


@pytest.mark.parametrize("text", [3, None, b"what", ["what"]])
def test_a_question_is_a_string(tokenizer: QuestionTokenizer, text: object) -> None:
    with pytest.raises(QuestionError, match="expected a string"):
        tokenizer.question(text)


def test_a_question_of_ten_thousand_words_is_cut_and_says_so(tokenizer: QuestionTokenizer) -> None:
    question = tokenizer.question("where is the ball " * 2500)
    assert len(question.ids) == 30
    assert question.ids[-1] == 1
    assert question.truncated
    assert not tokenizer.question("where is the ball").truncated


def test_words_beyond_the_fiftieth_are_cut_even_if_the_tokens_fit(tokenizer_path: Path) -> None:
    roomy = QuestionTokenizer(tokenizer_path, msgspec.structs.replace(SPEC, max_tokens=500))
    assert roomy.question("ball " * 51).truncated
    assert not roomy.question("ball " * 50).truncated


def test_one_word_of_a_million_letters(tokenizer: QuestionTokenizer) -> None:
    assert len(tokenizer.question("ball" * 250_000).ids) == 30


def test_unknown_tokens_are_counted_and_a_question_of_them_alone_is_refused(tokenizer: QuestionTokenizer) -> None:
    assert tokenizer.question("what color is the ball?").unknown_tokens == 0
    assert tokenizer.question("what 你 is").unknown_tokens == 1
    for foreign in ("你好吗", "🦊", "é"):
        with pytest.raises(QuestionError, match="no token that the model's vocabulary knows"):
            tokenizer.question(foreign)


def test_a_lone_surrogate_is_refused(tokenizer: QuestionTokenizer) -> None:
    with pytest.raises(QuestionError, match="not valid Unicode"):
        tokenizer.question("what is \ud800 this")


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer file"):
        QuestionTokenizer(tmp_path / "tokenizer.json", SPEC)


def test_settings_of_the_file_do_not_pad_or_cut(tokenizer_path: Path, tmp_path: Path) -> None:
    content = json.loads(tokenizer_path.read_text())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    plain = QuestionTokenizer(tokenizer_path, SPEC).question("what color is the ball?")
    assert QuestionTokenizer(tmp_path / "tokenizer.json", SPEC).question("what color is the ball?").ids == plain.ids


def test_answers_end_with_the_end_token_once(tokenizer: QuestionTokenizer) -> None:
    ids = tokenizer.answer_ids("two birds")
    assert ids[-1] == 1
    assert ids.count(1) == 1
    assert tokenizer.decode(ids) == "two birds"


def test_tidying_follows_the_published_tokenizer() -> None:
    untidy = "is it red ? no , it is n't . I 've seen ' it ' !"  # in its order: ' !' before ' \' '
    assert tidy(untidy) == "is it red? no, it isn't. I've seen'it '!"


@pytest.mark.parametrize("text", ["is it red ? no , it is n't . I 've seen ' it ' !", "don 't", "a b", "a  .b", "x 'r"])
def test_settled_text_never_changes_when_more_comes(text: str) -> None:
    final = tidy(text)
    for length in range(len(text) + 1):
        part = settled(tidy(text[:length]))
        assert final.startswith(part)


def test_settled_text_holds_back_half_a_character() -> None:
    assert settled("caf\N{REPLACEMENT CHARACTER}") == "caf"


def test_padding_marks_what_is_real() -> None:
    questions = [
        Question(text="", asked="", ids=ids, truncated=False, unknown_tokens=0) for ids in ((5, 1), (7, 8, 9, 1))
    ]
    ids, mask = pad(questions, 3)
    assert ids.tolist() == [[5, 1, 3, 3], [7, 8, 9, 1]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert ids.dtype == mask.dtype == np.int64


@pytest.fixture(scope="module")
def byte_tokenizer() -> QuestionTokenizer:
    """The reference model's: characters without a piece are spelled as bytes, and "</s>" is a piece as well."""
    path = Path(__file__).parents[2] / "models" / "reference" / "tokenizer.json"
    return QuestionTokenizer(path, SPEC)


def numbers_of(tokenizer: QuestionTokenizer, *names: str) -> list[int]:
    vocabulary = tokenizer._tokenizer.get_vocab()
    return [vocabulary[name] for name in names]


def test_no_piece_of_a_stream_is_changed_by_later_bytes(byte_tokenizer: QuestionTokenizer) -> None:
    binding = byte_tokenizer._tokenizer
    names = ["<0x27>", "<0x20>", "<0x6E>", "<0x74>", "<0x73>", "<0xC3>", "<0xA9>", "<0xEF>", "<0xBF>", "<0xBD>"]
    tricky = numbers_of(byte_tokenizer, *names, "\u2581", "s", "t", "n", "'", "?")
    pools: list[list[int]] = [list(range(binding.get_vocab_size())), list(byte_tokenizer._bytes), tricky]
    dice = random.Random(3)
    for round_ in range(3000):
        ids = [dice.choice(pools[round_ % 3]) for _ in range(dice.randint(1, 14))]
        final = byte_tokenizer.decode(ids)
        for count in range(1, len(ids) + 1):
            assert final.startswith(byte_tokenizer.decode_settled(ids[:count])), ids


@pytest.mark.parametrize(
    "names",
    [
        ["n", "<0xC3>", "<0xA9>", "<0xC3>", "n"],  # a whole character that the next byte spoils
        ["'", "s", "<0x20>", "\u2581", "'", "\u2581", "s"],
        ["<0xA9>", "\u2581", "<0x6E>", "\u2581", "'", "\u2581", "t"],
    ],
)
def test_texts_that_later_tokens_change(byte_tokenizer: QuestionTokenizer, names: list[str]) -> None:
    ids = numbers_of(byte_tokenizer, *names)
    final = byte_tokenizer.decode(ids)
    parts = [byte_tokenizer.decode_settled(ids[:count]) for count in range(1, len(ids) + 1)]
    assert all(final.startswith(part) for part in parts)


@pytest.mark.parametrize("text", ["\u732b", "\u8fd9\u662f\u4ec0\u4e48\uff1f", "</s>", "<pad>", "\uff1c/s\uff1e"])
def test_a_question_of_bytes_or_special_tokens_says_nothing(byte_tokenizer: QuestionTokenizer, text: str) -> None:
    with pytest.raises(QuestionError, match="no token that the model's vocabulary knows"):
        byte_tokenizer.question(text)


def test_bytes_are_unknown_tokens(byte_tokenizer: QuestionTokenizer) -> None:
    assert byte_tokenizer.question("is the caf\u00e9 red?").unknown_tokens == 2
    for plain in ("what color is the ball?", "zebra, quiz & 1234567890 - it's jokes/vexed%", "?"):
        assert byte_tokenizer.question(plain).unknown_tokens == 0


@pytest.mark.parametrize("text", ["is it </s> red", "is it </S> red", "is <pad> red", "is \uff1c/s\uff1e red"])
def test_special_tokens_in_a_question_are_text(byte_tokenizer: QuestionTokenizer, text: str) -> None:
    question = byte_tokenizer.question(text)
    assert question.ids[-1] == 1
    assert not {0, 1} & set(question.ids[:-1])
    assert question.unknown_tokens >= 1
    assert byte_tokenizer.answer_ids("</s>")[-1] == 1
    assert 1 not in byte_tokenizer.answer_ids("</s>")[:-1]


def test_a_choice_that_is_no_text(tokenizer: QuestionTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"The choice .* is not valid Unicode"):
        tokenizer.answer_ids("\ud800")
