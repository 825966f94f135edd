"""Asks questions about a scene whose answers are certain: counts, colours, shapes, places, relations, comparisons.

Every type yields all its questions with their answers; an answer is chosen first and then a question that has it, so
that answers are as balanced as the scene allows. Yes/no questions are asked only where both answers are possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgevqa.evaluation.datasets.scenes.layout import COLORS, PICTURE_SIZE, SHAPES, Scene, SceneObject, choose

Pairs = Iterator[tuple[str, str]]  # (question, answer)
RELATION_GAP = 2.0  # pixels between the boxes of two objects that stand in a relation
CENTER_GAP = 5.0  # pixels between an object's middle and the picture's, where its half is asked for
ANSWERS = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
RELATIONS = tuple(ANSWERS)
OPPOSITES: dict[str, str] = dict(zip(RELATIONS, ("to the right of", "to the left of", "below", "above"), strict=True))


@dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """One question about a scene, its answer and its type."""

    text: str
    answer: str
    type: str


def ask(
    scene: Scene, rng: np.random.Generator, count: int, weights: Mapping[str, float] | None = None
) -> list[SceneQuestion]:
    """Return `count` different questions about the scene: types vary while they can, and so do the answers.

    `weights` says how often each type is asked (`TYPE_WEIGHTS`).
    """
    offers = {kind: _by_answer(pairs(scene)) for kind, pairs in QUESTION_TYPES.items()}
    offers = {kind: offer for kind, offer in offers.items() if _worth_asking(offer)}
    while True:
        chosen = _choose(offers, rng, count, weights or TYPE_WEIGHTS)
        if count == 1 or len({question.answer for question in chosen}) > 1:
            return chosen


def stands(one: SceneObject, relation: str, other: SceneObject) -> bool:
    """Whether `one` is clearly left of, right of, above or below `other`: their boxes are apart on that axis."""
    if relation == "to the left of":
        return one.right + RELATION_GAP <= other.left
    if relation == "above":
        return one.bottom + RELATION_GAP <= other.top
    return stands(other, OPPOSITES[relation], one)


def _choose(
    offers: dict[str, dict[str, list[str]]], rng: np.random.Generator, count: int, weights: Mapping[str, float]
) -> list[SceneQuestion]:
    chosen: dict[str, SceneQuestion] = {}
    kinds: list[str] = []
    while len(chosen) < count:
        if not kinds:
            shares = np.array([weights[kind] for kind in offers])
            drawn = rng.choice(list(offers), len(offers), replace=False, p=shares / shares.sum())
            kinds = [str(kind) for kind in drawn]
        kind = kinds.pop(0)
        answer = choose(rng, list(offers[kind]))
        text = choose(rng, offers[kind][answer])
        chosen[text] = SceneQuestion(text=text, answer=answer, type=kind)
    return list(chosen.values())


def _by_answer(pairs: Pairs) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for text, answer in pairs:
        grouped.setdefault(answer, []).append(text)
    return dict(sorted(grouped.items()))


def _worth_asking(offer: dict[str, list[str]]) -> bool:
    """Whether there is a question, and a yes/no question could have had either answer."""
    return bool(offer) and not (len(offer) == 1 and ("yes" in offer or "no" in offer))


def _unique(scene: Scene) -> list[SceneObject]:
    """The objects that their colour and shape name without doubt."""
    names = Counter(item.name for item in scene.objects)
    return [item for item in scene.objects if names[item.name] == 1]


def _color(scene: Scene) -> Pairs:
    shapes = Counter(item.shape for item in scene.objects)
    for item in scene.objects:
        if shapes[item.shape] == 1:
            yield f"what color is the {item.shape}?", item.color


def _shape(scene: Scene) -> Pairs:
    colors = Counter(item.color for item in scene.objects)
    for item in scene.objects:
        if colors[item.color] == 1:
            yield f"what is the {item.color} shape?", item.shape


def _existence(scene: Scene) -> Pairs:
    names = {item.name for item in scene.objects}
    colors, shapes = {item.color for item in scene.objects}, {item.shape for item in scene.objects}
    for color in COLORS:
        for shape in SHAPES:
            # a colour or a shape that is there makes a "no" worth a look
            if f"{color} {shape}" in names or color in colors or (shape in shapes and len(scene.objects) < 3):
                yield f"is there a {color} {shape}?", "yes" if f"{color} {shape}" in names else "no"


def _count(scene: Scene) -> Pairs:
    yield "how many shapes are there?", str(len(scene.objects))
    shapes, colors = Counter(item.shape for item in scene.objects), Counter(item.color for item in scene.objects)
    for shape in SHAPES:
        yield f"how many {shape}s are there?", str(shapes[shape])
    for color in COLORS:
        if colors[color] or len(colors) == 1:
            yield f"how many {color} shapes are there?", str(colors[color])


def _position(scene: Scene) -> Pairs:
    middle = PICTURE_SIZE / 2
    for item in _unique(scene):
        x, y = item.center
        if abs(x - middle) >= CENTER_GAP:
            yield f"is the {item.name} on the left or on the right?", "left" if x < middle else "right"
        if abs(y - middle) >= CENTER_GAP:
            yield f"is the {item.name} at the top or at the bottom?", "top" if y < middle else "bottom"


def _relation(scene: Scene) -> Pairs:
    unique = _unique(scene)
    for one in unique:
        for other in unique:
            for relation in RELATIONS:
                if stands(one, relation, other):
                    choice = "left or right of" if relation.startswith("to") else "above or below"
                    yield f"is the {one.name} {choice} the {other.name}?", ANSWERS[relation]


def _neighbour(scene: Scene) -> Pairs:
    for item in _unique(scene):
        others = [other for other in scene.objects if other is not item]
        for relation in RELATIONS:
            there = [other for other in others if stands(other, relation, item)]
            elsewhere = [other for other in others if stands(other, OPPOSITES[relation], item)]
            if len(there) == 1 and len(there) + len(elsewhere) == len(others):
                yield f"what is {relation} the {item.name}?", there[0].name


def _comparison(scene: Scene) -> Pairs:
    counts = Counter(item.shape for item in scene.objects)
    for one in SHAPES:
        for other in SHAPES:
            if one != other and counts[one] != counts[other]:
                yield f"are there more {one}s than {other}s?", "yes" if counts[one] > counts[other] else "no"


def _equality(scene: Scene) -> Pairs:
    counts = Counter(item.shape for item in scene.objects)
    for one in SHAPES:
        for other in SHAPES:
            if one != other and counts[one] + counts[other] > 0:
                yield f"are there as many {one}s as {other}s?", "yes" if counts[one] == counts[other] else "no"


QUESTION_TYPES: dict[str, Callable[[Scene], Pairs]] = {
    "color": _color,
    "shape": _shape,
    "existence": _existence,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "neighbour": _neighbour,
    "comparison": _comparison,
    "equality": _equality,
}
TYPE_WEIGHTS = {
    "color": 1.0,
    "shape": 1.0,
    "existence": 1.5,
    "count": 1.5,
    "position": 1.5,
    "relation": 1.5,
    "neighbour": 0.6,
    "comparison": 0.8,
    "equality": 0.4,
}
