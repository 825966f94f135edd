"""All tokenizers of a bundle: a question is read once, for the language model and for whatever else reads it."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import QuestionError
from edgevqa.runtime.text import Question, QuestionTokenizer


class Questions:
    """Turns texts into questions. Safe to use from several threads."""

    def __init__(self, main: QuestionTokenizer | None, others: dict[str, QuestionTokenizer]) -> None:
        """`main` is None for models that take no text: then every question is empty."""
        self.main = main
        self.others = others

    @classmethod
    def of(cls, bundle: Bundle) -> Questions:
        """The tokenizers that the manifest names. Raises `BundleError` for a file that is none."""
        path, spec = bundle.tokenizer_path, bundle.manifest.text
        main = None if path is None or spec is None else QuestionTokenizer(path, spec)
        others = bundle.manifest.texts
        bundle.require(each.tokenizer for each in others.values())
        return cls(main, {name: QuestionTokenizer(bundle.root / o.tokenizer.path, o) for name, o in others.items()})

    def question(self, text: object) -> Question:
        """The question for every tokenizer. Raises what `QuestionTokenizer.question` raises."""
        if self.main is None:
            if not isinstance(text, str):
                raise QuestionError(f"A question was given as {type(text).__name__}; expected a string.")
            return Question(text=text, asked="", ids=(), truncated=False, unknown_tokens=0)
        question = self.main.question(text)
        if not self.others:
            return question
        others = {name: tokenizer.question(text).ids for name, tokenizer in self.others.items()}
        return msgspec.structs.replace(question, others=others)

    def blank(self) -> Question:
        """A question for warming up."""
        try:
            return self.question("what is it?")
        except QuestionError:  # a vocabulary of other words
            others: dict[str, tuple[int, ...]] = {name: (0, 0) for name in self.others}  # noqa: C420
            return Question(text="", asked="?", ids=(0, 0), truncated=False, unknown_tokens=0, others=others)
