"""Generated pictures of several objects with questions about them, reproducible from a seed."""

from edgevqa.evaluation.datasets.scenes.layout import Scene, SceneObject, random_scene, single_shape_scene
from edgevqa.evaluation.datasets.scenes.questions import SceneQuestion, ask
from edgevqa.evaluation.datasets.scenes.render import render

__all__ = ["Scene", "SceneObject", "SceneQuestion", "ask", "random_scene", "render", "single_shape_scene"]
