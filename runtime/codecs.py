"""What a flow's tokens mean: words of a tokenizer, or the labels of a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.text import QuestionTokenizer

LABELS_NAMED = 5


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


def distinct_labels(labels: Sequence[str]) -> list[str]:
    """The labels, those that several classes share with the class's number: ImageNet has two classes called `crane`."""
    count = Counter(labels)
    found = [f"{label} ({number})" if count[label] > 1 else label for number, label in enumerate(labels)]
    if len(set(found)) == len(found):
        return found
    return [f"{label} ({number})" for number, label in enumerate(labels)]  # another label is spelled like that


class Labels:
    """Answers that are one of a classifier's labels (see `distinct_labels`): one token, the label's index."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._given = list(labels)
        self._labels = distinct_labels(labels)

    def choice(self, text: str) -> tuple[int, ...]:
        if text in self._labels:
            return (self._labels.index(text),)
        same = [name for name, label in zip(self._labels, self._given, strict=True) if label == text]
        if len(same) == 1:
            return (self._labels.index(same[0]),)
        if same:
            raise ConfigError(
                f"The choice {text!r} is the label of {len(same)} classes. Give the one that is meant: {', '.join(same)}."
            )
        some = ", ".join(self._labels[:LABELS_NAMED]) + (", ..." if len(self._labels) > LABELS_NAMED else "")
        raise ConfigError(
            f"The choice {text!r} is none of the model's {len(self._labels)} labels ({some}). Choose among these."
        )

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
