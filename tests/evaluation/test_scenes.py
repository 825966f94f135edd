"""Generated scenes: an independent reader of questions finds the same answers, and pictures show their scenes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from edgevqa.evaluation.datasets.generated_scenes import QUESTIONS_PER_PICTURE, scene_of
from edgevqa.evaluation.datasets.scenes import SceneObject, SceneQuestion, ask, random_scene, render, single_shape_scene
from edgevqa.evaluation.datasets.scenes.layout import COLORS, PICTURE_SIZE, SHAPES
from edgevqa.evaluation.datasets.scenes.questions import QUESTION_TYPES

PICTURES = 600
Objects = tuple[SceneObject, ...]


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Objects, tuple[SceneQuestion, ...]]]:
    return [(scene.objects, questions) for scene, questions in (scene_of(5, i) for i in range(PICTURES))]


def the_only(objects: Objects, name: str) -> SceneObject:
    """The object that a question means by `red circle`, `circle` or `red shape`; it must be the only one."""
    words = [word for word in name.split() if word != "shape"]
    found = [item for item in objects if all(word in (item.color, item.shape) for word in words)]
    assert len(found) == 1, f"'{name}' names {len(found)} objects"
    return found[0]


def direction(one: SceneObject, other: SceneObject, axis: int) -> float:
    """Difference of the centres in pixels, negative where `one` is left of or above `other`."""
    return one.center[axis] - other.center[axis]


def count(objects: Objects, plural: str) -> int:
    words = [word for word in plural.split() if word != "shapes"]
    return sum(
        all(word.rstrip("s") in (item.color, item.shape) or word == item.color for word in words) for item in objects
    )


def beside(one: SceneObject, relation: str, other: SceneObject) -> bool:
    axis, sign = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    return direction(one, other, axis) * sign > 0


def answer_again(question: str, objects: Objects) -> str:
    """Answer a question from the list of objects by reading its text, without the generator's code."""
    text = question.rstrip("?")
    if found := re.fullmatch(r"what color is the (\w+)", text):
        return the_only(objects, found[1]).color
    if found := re.fullmatch(r"what is the (\w+ shape)", text):
        return the_only(objects, found[1]).shape
    if found := re.fullmatch(r"is there a (\w+) (\w+)", text):
        return "yes" if any((item.color, item.shape) == found.groups() for item in objects) else "no"
    if found := re.fullmatch(r"how many ([\w ]+) are there", text):
        return str(count(objects, found[1]))
    if found := re.fullmatch(r"is the (\w+ \w+) on the left or on the right", text):
        return "left" if the_only(objects, found[1]).center[0] < PICTURE_SIZE / 2 else "right"
    if found := re.fullmatch(r"is the (\w+ \w+) at the top or at the bottom", text):
        return "top" if the_only(objects, found[1]).center[1] < PICTURE_SIZE / 2 else "bottom"
    if found := re.fullmatch(r"are there (more|as many) (\w+) (?:than|as) (\w+)", text):
        first, second = count(objects, found[2]), count(objects, found[3])
        return "yes" if (first > second if found[1] == "more" else first == second) else "no"
    if found := re.fullmatch(r"is the (\w+ \w+) left or right of the (\w+ \w+)", text):
        return "left" if direction(the_only(objects, found[1]), the_only(objects, found[2]), 0) < 0 else "right"
    if found := re.fullmatch(r"is the (\w+ \w+) above or below the (\w+ \w+)", text):
        return "above" if direction(the_only(objects, found[1]), the_only(objects, found[2]), 1) < 0 else "below"
    if found := re.fullmatch(r"what is (to the left of|to the right of|above|below) the (\w+ \w+)", text):
        target = the_only(objects, found[2])
        there = [item for item in objects if item is not target and beside(item, found[1], target)]
        assert len(there) == 1, f"{len(there)} objects are {found[1]} it"
        return f"{there[0].color} {there[0].shape}"
    raise AssertionError(f"a question of unknown form: {question}")


def test_answers_are_right(pictures: list[tuple[Objects, tuple[SceneQuestion, ...]]]) -> None:
    for objects, questions in pictures:
        for question in questions:
            assert answer_again(question.text, objects) == question.answer, (question, objects)


def test_every_type_is_asked_and_yes_no_is_balanced(pictures: list[tuple[Objects, tuple[SceneQuestion, ...]]]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in pictures:
        for question in questions:
            answers[question.type][question.answer] += 1
    assert set(answers) == set(QUESTION_TYPES)
    for kind, counted in answers.items():
        total = sum(counted.values())
        assert total > 20, kind
        share = max(counted.values()) / total
        assert share < (0.66 if set(counted) == {"yes", "no"} else 0.5), (kind, counted)
    together = Counter[str]()
    for counted in answers.values():
        together += counted
    assert 0.45 < together["yes"] / (together["yes"] + together["no"]) < 0.55


def test_the_question_matters(pictures: list[tuple[Objects, tuple[SceneQuestion, ...]]]) -> None:
    for _, questions in pictures:
        assert len({question.text for question in questions}) == QUESTIONS_PER_PICTURE
        assert len({question.answer for question in questions}) > 1


def test_objects_stay_apart_and_inside(pictures: list[tuple[Objects, tuple[SceneQuestion, ...]]]) -> None:
    counts = Counter(len(objects) for objects, _ in pictures)
    assert set(counts) == {1, 2, 3, 4, 5}
    for objects, _ in pictures:
        covered = np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=int)
        for item in objects:
            assert item.left >= 0
            assert item.top >= 0
            assert item.right <= PICTURE_SIZE
            assert item.bottom <= PICTURE_SIZE
            covered[int(item.top) : int(np.ceil(item.bottom)), int(item.left) : int(np.ceil(item.right))] += 1
        assert covered.max() == 1


def test_the_picture_shows_the_scene() -> None:
    for seed in range(60):
        scene = random_scene(np.random.default_rng([3, seed]))
        pixels = np.asarray(render(scene))
        assert pixels.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
        foreground = (pixels != scene.background).any(-1)
        for item in scene.objects:
            x, y = item.center
            assert tuple(pixels[int(y), int(x)]) == COLORS[item.color]
            box = np.s_[
                max(0, int(item.top) - 1) : int(item.bottom) + 2, max(0, int(item.left) - 1) : int(item.right) + 2
            ]
            share = foreground[box].sum() / (item.width * item.height)
            low, high = {"circle": (0.7, 0.95), "rectangle": (0.9, 1.3), "triangle": (0.45, 0.75)}[item.shape]
            assert low < share < high, (item, share)
            foreground[box] = False
        assert not foreground.any()


def test_same_seed_same_scene_and_other_seed_other_scene() -> None:
    first, again, other = (random_scene(np.random.default_rng([seed, 4])) for seed in (9, 9, 10))
    assert first == again
    assert first != other
    assert render(first).tobytes() == render(again).tobytes()


def test_one_shape_pictures_have_one_shape_of_easy_vqas_sizes() -> None:
    scenes = [single_shape_scene(np.random.default_rng([1, seed])) for seed in range(300)]
    assert {scene.objects[0].shape for scene in scenes} == set(SHAPES)
    assert {scene.objects[0].color for scene in scenes} == set(COLORS)
    assert all(len(scene.objects) == 1 and 9 <= scene.objects[0].width <= 34 for scene in scenes)


def test_many_questions_of_one_scene_are_all_different() -> None:
    rng = np.random.default_rng(0)
    questions = ask(random_scene(rng), rng, 12)
    assert len({question.text for question in questions}) == 12
