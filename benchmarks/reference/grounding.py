"""Says which patches of a generated picture show what, and which of them a question is about.

Training on these besides the answers teaches a small model in minutes what answers alone teach in hours.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from edgevqa.evaluation.datasets.scenes.layout import COLORS, PICTURE_SIZE, SHAPES, Scene, SceneObject
from edgevqa.evaluation.datasets.scenes.questions import RELATIONS, stands
from edgevqa.evaluation.datasets.scenes.render import draw_indices

PATCH = 8
PATCHES = (PICTURE_SIZE // PATCH) ** 2
IGNORED = -100
LEAST_PIXELS = 6  # an object that covers fewer of a patch's 64 is neither there nor absent
COLOR_CLASSES = {name: number for number, name in enumerate(COLORS, start=1)}  # 0 is the background
SHAPE_CLASSES = {name: number for number, name in enumerate(SHAPES, start=1)}
FIRST, SECOND = 1, 2  # what a question is about, and what it is compared with
Labels = NDArray[np.int64]  # (patches,)
_MENTION = re.compile(rf"(?:\b({'|'.join(COLORS)}) )?\b({'|'.join(SHAPES)}|shape)s?\b")
_NEIGHBOUR = re.compile(rf"what is ({'|'.join(RELATIONS)}) the")


def object_of_patch(scene: Scene) -> Labels:
    """Return for each patch its object's index, -1 for background, `IGNORED` where an object covers too little."""
    indices = draw_indices(scene)  # 0 background, object i as i + 1
    side = PICTURE_SIZE // PATCH
    patches = indices.reshape(side, PATCH, side, PATCH).swapaxes(1, 2).reshape(PATCHES, PATCH * PATCH)
    covered = np.stack([(patches == i + 1).sum(1) for i in range(len(scene.objects))])  # (objects, patches)
    most = covered.max(0)
    return np.where(most >= LEAST_PIXELS, covered.argmax(0), np.where(most == 0, -1, IGNORED))


def describe(scene: Scene, objects: Labels) -> tuple[Labels, Labels]:
    """Return each patch's colour class and shape class."""
    colors = [COLOR_CLASSES[item.color] for item in scene.objects]
    shapes = [SHAPE_CLASSES[item.shape] for item in scene.objects]
    return spread(colors, objects), spread(shapes, objects)


def roles_of(scene: Scene, question: str) -> list[int]:
    """Return each object's part in a question: 0 none, `FIRST` what is asked about, `SECOND` its counterpart."""
    roles = [0] * len(scene.objects)
    mentions = [_matching(scene, *found) for found in _MENTION.findall(question)]
    if neighbour := _NEIGHBOUR.match(question):
        reference = scene.objects[mentions[0][0]]
        there = [i for i, item in enumerate(scene.objects) if stands(item, neighbour[1], reference)]
        mentions = [there, mentions[0]]
    for role, mentioned in zip((FIRST, SECOND), mentions, strict=False):
        for index in mentioned:
            roles[index] = role
    return roles


def spread(classes: list[int], objects: Labels) -> Labels:
    """Return the objects' classes (or parts) laid out on their patches."""
    table = np.array([*classes, 0])  # index -1 is the background
    return np.where(objects == IGNORED, IGNORED, table[np.maximum(objects, -1)])


def parts_of_tokens(tokens: list[str], question: str) -> tuple[list[int], list[int]]:
    """Return each token's part in the question (that of the shape word that ends a mention) and the mention's colour class."""
    roles, colors = [0] * len(tokens), [0] * len(tokens)
    role = SECOND if _NEIGHBOUR.match(question) else FIRST
    for place, token in enumerate(tokens):
        word = token.lstrip("\u2581")
        if word.removesuffix("s") in (*SHAPES, "shape"):
            roles[place] = min(role, SECOND)
            role += 1
            colors[place] = COLOR_CLASSES.get(tokens[place - 1].lstrip("\u2581"), 0) if place else 0
    return roles, colors


def _matching(scene: Scene, color: str, shape: str) -> list[int]:
    def fits(item: SceneObject) -> bool:
        return color in ("", item.color) and shape in ("shape", item.shape)

    return [index for index, item in enumerate(scene.objects) if fits(item)]
