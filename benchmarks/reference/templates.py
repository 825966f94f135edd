"""Easy-vqa's way of asking, learned from its training questions, for generated pictures of one shape."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from edgevqa.evaluation.datasets.scenes.layout import COLORS, SHAPES, SceneObject, choose

PRESENT_SHARE = 0.4  # of yes/no questions that name what is there
_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})\b")
_NEGATION = re.compile(r"\b(not|no)\b")


def templates_of(questions: Iterable[str]) -> list[str]:
    """Return the distinct questions with `{color}` and `{shape}` in the place of their words, sorted."""
    return sorted({_SHAPE.sub("{shape}", _COLOR.sub("{color}", question)) for question in questions})


def fill(template: str, item: SceneObject, rng: np.random.Generator) -> tuple[str, str]:
    """Return a question about a picture that shows `item` alone, and its answer."""
    if template.startswith("what"):
        answer = item.color if "color is" in template or "the color of" in template else item.shape
        return template.format(color=item.color, shape=item.shape), answer
    asked = {"color": item.color, "shape": item.shape}
    present = rng.random() < PRESENT_SHARE
    if not present:
        slot, options = ("color", list(COLORS)) if "{color}" in template else ("shape", list(SHAPES))
        asked[slot] = choose(rng, [option for option in options if option != asked[slot]])
    negated = _NEGATION.search(template) is not None
    return template.format(**asked), "yes" if present != negated else "no"
