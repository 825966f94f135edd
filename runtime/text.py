"""Questions into token ids and token ids into answers, with the `tokenizers` package alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from edgevqa.runtime.errors import BundleError, ConfigError, QuestionError
from edgevqa.runtime.manifest import TextSpec

QUESTION = "{question}"
PLAIN = QUESTION  # a template that adds nothing
QAVIT_MAX_WORDS = 50
_QAVIT_DELETED = str.maketrans("", "", '.!"()*#:;~')
_WORD_MARKS = "\u2581\u0120 "  # how SentencePiece and byte-level BPE write a blank
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how SentencePiece spells characters that have no piece

# What the published code's tokenizer tidies when it decodes, in its order: a blank before these is dropped.
_TIDIED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question ready for the graphs.

    `text` as it was asked, `asked` as it was fed, `ids` the tokens including the end token (at most `max_tokens`),
    `truncated` whether words or tokens were cut, `unknown_tokens` how many tokens the vocabulary does not have: those it
    marks as unknown or spells byte by byte. `others` are the ids of further tokenizers, by what they serve.
    """

    text: str
    asked: str
    ids: tuple[int, ...]
    truncated: bool
    unknown_tokens: int
    others: dict[str, tuple[int, ...]] = {}


class QuestionTokenizer:
    """The bundle's tokenizer with its cleaning rule. Safe to use from several threads."""

    def __init__(self, path: Path, spec: TextSpec) -> None:
        """Read `path`, a `tokenizer.json`. Raises `BundleError` when it is none."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare Exception
            raise BundleError(f"{path} is not a tokenizer file: {error}. Export the bundle again.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._spec = spec
        self._templated = spec.template != PLAIN
        # "</s>" in a question is text (see `_encode` for the rest), but a template's special tokens are meant
        self._tokenizer.encode_special_tokens = not self._templated
        self._special = frozenset(spec.special_token_ids)
        self._unknown = _unknown_id(self._tokenizer)
        self._bytes = _byte_ids(self._tokenizer)
        self._reserved = self._special | _special_ids(self._tokenizer)
        self._added = sorted((each.content for each in _added(self._tokenizer)), key=len, reverse=True)

    def question(self, text: object) -> Question:
        """Clean and tokenize a question; what passes the limits is cut and marked, the end token is kept.

        Raises `QuestionError` for a question that is empty (also after cleaning) or has no token the vocabulary knows.
        """
        if not isinstance(text, str):
            raise QuestionError(f"A question was given as {type(text).__name__}; expected a string.")
        asked, cut = clean(text, self._spec.cleaning)
        if not asked.strip() and self._spec.required:
            raise QuestionError(f"The question {_short(text)} is empty{_after_cleaning(text)}. Ask with words.")
        if self._templated:
            asked = self._without_added(asked)
        ids = self._encode(asked, add_special_tokens=self._spec.special_tokens and not self._templated)
        if ids is None:
            raise QuestionError(
                f"The question {_short(text)} is not valid Unicode text. Check how the file or terminal encodes it."
            )
        if self._says_nothing(ids):
            raise QuestionError(
                f"The question {_short(text)} has no token that the model's vocabulary knows. "
                "Ask in the language and script that the model was trained on."
            )
        kept = self._truncate(ids)
        truncated = cut or len(kept) < len(ids)
        unknown = sum(self._is_unknown(token) for token in kept)
        if self._templated:
            kept = self._prompt(asked)
        image = self._spec.image_token_id
        if image is not None and image not in kept:  # not the template, the model puts the picture: before everything
            kept = (image, *kept)
        return Question(text=text, asked=asked, ids=kept, truncated=truncated, unknown_tokens=unknown)

    @property
    def template_tokens(self) -> int:
        """Tokens that stand around every question: what comes before and after it, and what the tokenizer adds."""
        before, _, after = self._spec.template.partition(QUESTION)
        return len(self._tokenizer.encode(before).ids) + len(
            self._tokenizer.encode(after, add_special_tokens=False).ids
        )

    def answer_ids(self, text: str, end: int | None = None) -> tuple[int, ...]:
        """Tokens of an answer to choose, and the end token; not cleaned, not cut. Raises `ConfigError`.

        `end` is what ends an answer; the end of a question where None.
        """
        ids = self._encode(self._spec.answer_prefix + text, add_special_tokens=False)
        if ids is None:
            raise ConfigError(f"The choice {_short(text)} is not valid Unicode text. Check how it is encoded.")
        end = self._spec.eos_token_id if end is None else end
        return ids if end is None or (ids and ids[-1] == end) else (*ids, end)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens without the special ones, tidied as the published code does, or without outer blanks."""
        kept = [token for token in ids if token not in self._special]
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        if self._spec.tidied:
            return tidy(text).strip()
        return tidy(text) if self._spec.cleaning == "qavit_question" else text.strip()

    def decode_settled(self, ids: Sequence[int]) -> str:
        """The front part of the text of an answer still being generated that no further token can change."""
        kept = [token for token in ids if token not in self._special]
        while kept and kept[-1] in self._bytes:  # one more byte may spoil the whole run, which then decodes otherwise
            kept.pop()
        return settled(self.decode(kept))

    def _prompt(self, asked: str) -> tuple[int, ...]:
        """Ids of the template with the question in it, which is cut where it is too long; of no template without one."""
        alone = self._tokenizer.encode(asked, add_special_tokens=False)
        if len(alone.ids) > self._spec.max_tokens:
            asked = asked[: alone.offsets[self._spec.max_tokens - 1][1]]
        if not asked.strip():  # asked nothing, a model describes the picture: words around no question would mislead it
            return tuple(self._tokenizer.encode("").ids)
        return tuple(self._tokenizer.encode(self._spec.template.replace(QUESTION, asked)).ids)

    def _without_added(self, text: str) -> str:
        """Blanks in place of what the tokenizer would take for its added tokens, such as `<image>`."""
        for content in self._added:
            text = text.replace(content, " ") if content.strip() else text
        return text

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...] | None:
        """Token ids; None where the text is not valid Unicode (lone surrogates).

        Special tokens come from the template alone: where the text spells one (also after normalization, or as a piece
        of a Unigram vocabulary), an unknown token stands for it, or nothing where there is none.
        """
        try:
            found = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):
            return None
        stand_in = () if self._unknown is None else (self._unknown,)
        ids: list[int] = []
        for token, from_template in zip(found.ids, found.special_tokens_mask, strict=True):
            ids += (token,) if from_template or token not in self._reserved else stand_in
        return tuple(ids)

    def _is_unknown(self, token: int) -> bool:
        return token == self._unknown or token in self._bytes

    def _truncate(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        limit = self._spec.max_tokens
        if len(ids) <= limit:
            return ids
        if self._spec.eos_token_id is None:
            return ids[:limit]
        return (*ids[: limit - 1], self._spec.eos_token_id)

    def _says_nothing(self, ids: Sequence[int]) -> bool:
        """Whether unknown tokens are all there is, apart from special tokens, punctuation and the marks of a new word."""
        if not any(self._is_unknown(token) for token in ids):
            return False
        others = (token for token in ids if not self._is_unknown(token) and token not in self._special)
        pieces = ((self._tokenizer.id_to_token(token) or "").strip(_WORD_MARKS) for token in others)
        return not any(character.isalnum() for piece in pieces for character in piece)


def clean(text: str, rule: str) -> tuple[str, bool]:
    """Apply the manifest's cleaning rule; returns the text and whether words were cut.

    `qavit_question`, as published: lower case; the characters . ! " ( ) * # : ; ~ deleted; trailing blanks dropped; the
    first 50 pieces between single blanks. Other punctuation, leading and inner blanks stay.
    """
    if rule != "qavit_question":
        return text, False
    words = text.lower().translate(_QAVIT_DELETED).rstrip(" ").split(" ")
    return " ".join(words[:QAVIT_MAX_WORDS]), len(words) > QAVIT_MAX_WORDS


def tidy(text: str) -> str:
    """Drop the blanks that word pieces leave before punctuation and contractions."""
    for untidy, tidied in _TIDIED:
        text = text.replace(untidy, tidied)
    return text


def settled(text: str) -> str:
    """The front part of a text still being generated that no further token can change (see `tidy`).

    Held back: a trailing blank with what follows it while that may still become a tidied piece, an apostrophe at the
    end (what comes next decides whether a blank stays before it), and bytes of a character that is not complete; then
    what stands before them in the same way, for one piece that is tidied may complete another.
    """
    while True:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}'")
        blank = text.rfind(" ")
        tail = text[blank:]
        if blank < 0 or not any(untidy.startswith(tail) for untidy, _ in _TIDIED):
            return text
        text = text[:blank]


def pad(questions: Sequence[Question], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and their mask, int64 (batch, words), padded at the end to the longest question."""
    return pad_ids([question.ids for question in questions], pad_token_id)


def pad_ids(
    rows: Sequence[Sequence[int]], pad_token_id: int, *, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids and their mask, int64 (batch, longest), padded at the end, or with `left` at the beginning."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place] = row
        mask[number, place] = 1
    return ids, mask


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    found = (tokenizer.token_to_id(name) for name in ("<unk>", "[UNK]"))
    return next((token for token in found if token is not None), None)


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(number for token, number in tokenizer.get_vocab().items() if _BYTE.fullmatch(token))


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _added(tokenizer: Tokenizer) -> list[AddedToken]:
    return list(tokenizer.get_added_tokens_decoder().values())


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _after_cleaning(text: str) -> str:
    return " after cleaning" if text.strip() else ""
