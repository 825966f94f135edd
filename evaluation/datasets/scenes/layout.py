"""What is in a generated picture: coloured shapes at places that do not overlap, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

PICTURE_SIZE = 64
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
SHAPES = ("circle", "rectangle", "triangle")

TRIANGLE_HEIGHT = 3**0.5 / 2  # of an equilateral triangle with side 1
OBJECT_GAP = 3.0  # pixels left free between two bounding boxes
COUNT_WEIGHTS = {1: 0.06, 2: 0.26, 3: 0.32, 4: 0.26, 5: 0.10}
MAX_PLACEMENTS = 60

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape: its colour's name and its bounding box in pixels, (0, 0) being the picture's top left corner."""

    shape: str
    color: str
    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The bounding box's right edge in pixels."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The bounding box's lower edge in pixels."""
        return self.top + self.height

    @property
    def center(self) -> tuple[float, float]:
        """The bounding box's middle, (x, y) in pixels."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def name(self) -> str:
        """How a question names it: `red circle`."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The objects of one picture and its pale background, RGB in 0..255."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]


def choose(rng: np.random.Generator, options: list[T]) -> T:
    """Return one of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def random_scene(rng: np.random.Generator) -> Scene:
    """Return a scene of one to five objects whose colours and shapes repeat often enough to be worth counting."""
    count = int(rng.choice(list(COUNT_WEIGHTS), p=list(COUNT_WEIGHTS.values())))
    palette = [str(name) for name in rng.permutation(list(COLORS))[: int(rng.integers(2, 5))]]
    largest = 20 if count <= 3 else 17
    while True:
        objects = _place(rng, count, palette, largest)
        if objects is not None:
            return Scene(objects=objects, background=random_background(rng))


def single_shape_scene(rng: np.random.Generator) -> Scene:
    """Return a scene of one shape with the sizes of easy-vqa: 10 to 32 pixels, anywhere in the picture."""
    item = _random_object(rng, list(COLORS), 9.5, 33.0)
    return Scene(objects=(item,), background=random_background(rng))


def random_background(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a pale colour, each channel in 230..255."""
    red, green, blue = (int(value) for value in rng.integers(230, 256, 3))
    return red, green, blue


def _place(rng: np.random.Generator, count: int, palette: list[str], largest: float) -> tuple[SceneObject, ...] | None:
    """Return `count` objects that keep their distance, or None where chance left no room."""
    placed: list[SceneObject] = []
    for _ in range(MAX_PLACEMENTS):
        item = _random_object(rng, palette, 12.0, largest)
        if all(_apart(item, other) for other in placed):
            placed.append(item)
        if len(placed) == count:
            return tuple(placed)
    return None


def _random_object(rng: np.random.Generator, palette: list[str], smallest: float, largest: float) -> SceneObject:
    shape, color = choose(rng, list(SHAPES)), choose(rng, palette)
    width = float(rng.uniform(smallest, largest))
    if shape == "circle":
        height = width
    elif shape == "triangle":
        height = width * TRIANGLE_HEIGHT
    else:
        height = float(rng.uniform(smallest, largest))
    left, top = rng.uniform(0, PICTURE_SIZE - width), rng.uniform(0, PICTURE_SIZE - height)
    return SceneObject(shape=shape, color=color, left=float(left), top=float(top), width=width, height=height)


def _apart(one: SceneObject, other: SceneObject) -> bool:
    horizontal = one.right + OBJECT_GAP <= other.left or other.right + OBJECT_GAP <= one.left
    vertical = one.bottom + OBJECT_GAP <= other.top or other.bottom + OBJECT_GAP <= one.top
    return horizontal or vertical
