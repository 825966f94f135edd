"""The answer normalisation of the official VQA evaluation, so that `Two dogs.` and `2 dogs` are one answer.

Written from the behaviour of the public evaluation code for VQA v2 (GT-Vision-Lab/VQA, commit a013f00), with its
quirks, since published figures contain them: a punctuation mark becomes a space, but nothing at all where the text has a
space beside that mark anywhere, or a comma between digits; a period goes unless a digit follows; apostrophes and colons stay.
"""

from __future__ import annotations

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"[0-9],[0-9]")
_PERIOD = re.compile(r"\.(?![0-9])")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}

# Contractions by the word they begin with. Left out, as the official table does, are those that are other words without
# their apostrophe (`he'll`, `she'd`, `we're`, `let's`) and those with a capital I, which never meet a lower-cased word.
# One entry differs on purpose: the official table turns `somebody'd` into `somebodyd`. The same answers match either way.
_CONTRACTIONS_OF = {
    **dict.fromkeys(("ai", "are", "ca", "did", "does", "do", "has", "have", "is", "must", "need"), "n't"),
    **dict.fromkeys(("ought", "sha", "was", "were", "wo"), "n't"),
    **dict.fromkeys(("could", "should", "would", "might"), "'ve n't n't've"),
    **dict.fromkeys(("somebody", "someone"), "'d 'd've 'll 's"),
    **dict.fromkeys(("it", "something"), "'d 'd've 'll"),
    **dict.fromkeys(("not", "we"), "'ve"),
    "had": "n't n't've",
    "he": "'d 'd've 's",
    "how": "'d 'll 's",
    "ma": "'am",
    "o": "'clock",
    "'ow": "'s'at",
    "she": "'d've",
    "that": "'s",
    "there": "'d 'd've 're 's",
    "they": "'d 'd've 'll 're 've",
    "'t": "was",
    "what": "'ll 're 's 've",
    "when": "'s",
    "where": "'d 's 've",
    "who": "'d 'd've 'll 's 've",
    "why": "'ll 're 's",
    "y": "'all 'all'll 'all'd've",
    "you": "'d 'd've 'll 're 've",
}
_MORE_CONTRACTIONS = ("must've", "we'd've")


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


def _misspellings() -> dict[str, str]:
    """Each contraction by every spelling that lacks exactly one of its apostrophes."""
    words = [stem + ending for stem, endings in _CONTRACTIONS_OF.items() for ending in endings.split()]
    return {wrong: word for word in (*words, *_MORE_CONTRACTIONS) for wrong in _without_one_apostrophe(word)}


_CONTRACTIONS = _misspellings()


def single_line(text: str) -> str:
    """The text with line breaks and tabs as spaces, and none at its ends: what the official code compares at least."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalize_answer(text: str) -> str:
    """The text as the official VQA evaluation compares it: `The dogs, two.` gives `dogs 2`.

    Lower case, no articles, number words up to ten as digits (`none` as 0), missing apostrophes of contractions added,
    punctuation as the file's docstring says. The result may be empty: `the` is.
    """
    words = _without_punctuation(single_line(text)).lower().split()
    counted = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in counted if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    joined = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        if mark in text:
            gone = joined or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if gone else " ")
    return _PERIOD.sub("", result)
