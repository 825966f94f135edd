"""The questions that a variant answers otherwise than the float model, with their pictures, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from edgevqa.evaluation.comparing import Compared, Comparison, changes
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.metrics import RIGHT_FROM, vqa_accuracy

MOST_CARDS = 60
PICTURE_PX = 320
SMALL_PX = 128


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row's answer beside the float model's; `verdict` is lost, gained, or other (None: nothing to judge by)."""

    row: str
    before: str
    after: str
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """One question: picture as a data URI, what is right, and every row's changed answer."""

    question: str
    question_type: str
    expected: str
    picture: str
    small: bool
    changes: list[Change]


@dataclass(frozen=True, kw_only=True)
class Cards:
    """The cards that are shown, of `total` questions with a changed answer."""

    shown: list[Card]
    total: int


def make_cards(comparison: Comparison, names: Sequence[str]) -> Cards:
    """At most 60 questions, those that lost their right answer first; `names` are the rows', in their order."""
    called = {id(each): name for each, name in zip(comparison.compared, names, strict=True)}
    found = [
        (comparison.samples[place], [_change(comparison.samples[place], each, called) for each in rows])
        for place, rows in changes(comparison.compared, comparison.samples)
    ]
    found.sort(key=lambda item: min(_rank(change) for change in item[1]))  # stable: the data set's order within a rank
    return Cards(shown=[_card(sample, rows) for sample, rows in found[:MOST_CARDS]], total=len(found))


def _change(sample: Sample, found: tuple[Compared, str, str], called: dict[int, str]) -> Change:
    row, before, after = found
    verdict = None
    if sample.answers:
        was, now = (vqa_accuracy(text, sample.answers) >= RIGHT_FROM for text in (before, after))
        verdict = "lost" if was and not now else "gained" if now and not was else "other"
    return Change(row=called[id(row)], before=before, after=after, verdict=verdict)


def _rank(change: Change) -> int:
    return {"lost": 0, "gained": 1}.get(change.verdict or "", 2)


def _card(sample: Sample, rows: list[Change]) -> Card:
    picture, small = data_uri(sample.image)
    return Card(
        question=sample.question,
        question_type=sample.question_type,
        expected=_expected(sample.answers),
        picture=picture,
        small=small,
        changes=rows,
    )


def _expected(answers: Sequence[str]) -> str:
    """The answers, the most frequent first, each once."""
    return ", ".join(sorted(dict.fromkeys(answers), key=lambda answer: -list(answers).count(answer)))


def data_uri(image: Image.Image) -> tuple[str, bool]:
    """The picture inside the page, at most 320 pixels wide or high; and whether it is small, to be shown with its pixels."""
    small = max(image.size) <= SMALL_PX
    copy = image.convert("RGB")
    copy.thumbnail((PICTURE_PX, PICTURE_PX))
    stream = io.BytesIO()
    if small:
        copy.save(stream, format="PNG", optimize=True)
    else:
        copy.save(stream, format="JPEG", quality=82, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", small
