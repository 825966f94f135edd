"""Draws a scene as a small anti-aliased picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgevqa.evaluation.datasets.scenes.layout import COLORS, PICTURE_SIZE, Scene, SceneObject

OVERSAMPLING = 4


def render(scene: Scene) -> Image.Image:
    """Return the scene as an RGB picture of 64 x 64 pixels, edges smoothed by drawing it four times larger."""
    side = PICTURE_SIZE * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), scene.background)
    pen = ImageDraw.Draw(canvas)
    for item in scene.objects:
        _draw(pen, item, COLORS[item.color], OVERSAMPLING)
    return canvas.reduce(OVERSAMPLING)


def draw_indices(scene: Scene) -> NDArray[np.uint8]:
    """Return which object each pixel shows, (64, 64): 0 for the background, i + 1 for object i."""
    canvas = Image.new("L", (PICTURE_SIZE, PICTURE_SIZE), 0)
    pen = ImageDraw.Draw(canvas)
    for index, item in enumerate(scene.objects):
        _draw(pen, item, index + 1, 1)
    return np.asarray(canvas)


def _draw(pen: ImageDraw.ImageDraw, item: SceneObject, fill: tuple[int, int, int] | int, scale: int) -> None:
    left, top = round(item.left * scale), round(item.top * scale)
    right, bottom = round(item.right * scale) - 1, round(item.bottom * scale) - 1
    if item.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "rectangle":
        pen.rectangle((left, top, right, bottom), fill=fill)
    else:
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill)
