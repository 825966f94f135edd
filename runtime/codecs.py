"""What a flow's tokens mean: words of a tokenizer, or the labels of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.text import QuestionTokenizer


class AnswerCodec(Protocol):
    """Texts of answers into tokens and back."""

    def choice(self, text: str) -> tuple[int, ...]:
        """The tokens of an answer to choose. Raises `ConfigError` for one that cannot be given."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer."""
        ...

    def settled(self, tokens: Sequence[int]) -> str:
        """The front part of the text of an answer still being generated that no further token can change."""
        ...


class GeneratedText:
    """Answers that are generated token by token."""

    def __init__(self, tokenizer: QuestionTokenizer, end: int) -> None:
        """`end` is the token that ends an answer."""
        self._tokenizer = tokenizer
        self._end = end

    def choice(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.answer_ids(text, self._end)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def settled(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode_settled(tokens)


class Labels:
    """Answers that are one of a classifier's labels: one token, the label's index."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)

    def choice(self, text: str) -> tuple[int, ...]:
        if text not in self._labels:
            some = ", ".join(self._labels[:5])
            raise ConfigError(f"The choice {text!r} is none of the model's {len(self._labels)} labels ({some}, ...).")
        return (self._labels.index(text),)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._labels[tokens[0]] if tokens else ""

    def settled(self, tokens: Sequence[int]) -> str:
        return self.decode(tokens)


class Captions:
    """Answers that are texts compared with the picture: their tokens are those of a question."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    def choice(self, text: str) -> tuple[int, ...]:
        return self._questions.question(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return ""

    def settled(self, tokens: Sequence[int]) -> str:
        return ""


def make_codec(kind: str, manifest: Manifest, questions: Questions) -> AnswerCodec:
    """The codec of a flow (`text`, `label` or `caption`). Raises `BundleError` when the manifest lacks what it needs."""
    if kind == "label":
        return Labels(manifest.labels)
    if kind == "caption":
        return Captions(questions)
    if questions.main is None or manifest.generation is None:
        lacking = "text" if questions.main is None else "generation"
        raise BundleError(f"The manifest lacks '{lacking}', which answering questions needs. Export the bundle again.")
    return GeneratedText(questions.main, manifest.generation.eos_token_id)
