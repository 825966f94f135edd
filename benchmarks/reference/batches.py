"""Training batches of easy-vqa pictures, generated one-shape pictures and scenes, made by a process of their own.

Batch `k` depends on the seed and on `k` alone, so that a resumed run goes on with the batches it would have seen.
"""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.reference.grounding import (
    FIRST,
    IGNORED,
    PATCHES,
    SECOND,
    Labels,
    describe,
    object_of_patch,
    parts_of_tokens,
    roles_of,
    spread,
)
from benchmarks.reference.pictures import Picture, augment
from benchmarks.reference.recipe import SCENE_TYPE_WEIGHTS, VALIDATION_PICTURES, Recipe
from benchmarks.reference.templates import fill, templates_of
from edgevqa.evaluation.datasets.base import Dataset, Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.datasets.scenes import Scene, ask, random_scene, render, single_shape_scene
from edgevqa.evaluation.datasets.scenes.layout import choose

QUEUE_LENGTH = 6
QUESTION_LENGTH, ANSWER_LENGTH = 14, 3  # tokens; one shape for all batches, so that the model compiles once
UNMARKED_SHARE = 0.1  # of training questions that lose their question mark
Asked = tuple[int, str, str]  # (picture's index in the batch, question, answer)
Drawn = tuple[Picture, list[tuple[str, str]], Scene | None]  # picture, (question, answer) pairs, what it shows if known
Ground = tuple[Labels, Labels, Labels, Labels]  # see Batch: colours, shapes, parts and counts of one picture


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures (image, 64, 64, 3) uint8; for each question its picture, ids, mask and labels (batch, length) int64.

    Where the pictures were generated: each patch's colour and shape (image, patches), its part in each question
    (batch, patches), and how many objects a question is about and compares them with (batch, 2). What each token of a
    question names: its part and its colour (batch, length).
    """

    pictures: NDArray[np.uint8]
    image_index: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]
    patch_colors: Labels | None = None
    patch_shapes: Labels | None = None
    patch_asked: Labels | None = None
    asked_counts: Labels | None = None
    token_roles: Labels | None = None
    token_colors: Labels | None = None


def encode(tokenizer: Tokenizer, pictures: list[Picture], asked: list[Asked]) -> Batch:
    """Return the batch of these pictures and questions; labels are padded with -100."""
    questions = [encoding.ids for encoding in tokenizer.encode_batch([question for _, question, _ in asked])]
    answers = [encoding.ids for encoding in tokenizer.encode_batch([answer for _, _, answer in asked])]
    input_ids = _pad(questions, QUESTION_LENGTH, 0)
    lengths = np.array([len(ids) for ids in questions])
    return Batch(
        pictures=np.stack(pictures),
        image_index=np.array([index for index, _, _ in asked]),
        input_ids=input_ids,
        attention_mask=(np.arange(input_ids.shape[1]) < lengths[:, None]).astype(np.int64),
        labels=_pad(answers, ANSWER_LENGTH, -100),
    )


class BatchMaker:
    """Makes any batch of a run; holds easy-vqa's training pictures in memory (47 MB)."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        samples = list(_training_part(open_dataset("easy-vqa:train")))
        self.templates = templates_of(sample.question for sample in samples)
        self.questions: dict[str, list[tuple[str, str]]] = {}
        for sample in samples:
            self.questions.setdefault(sample.image_id, []).append((sample.question, sample.answers[0]))
        openers = {sample.image_id: sample.open_image for sample in samples}
        self.pictures = {image_id: np.asarray(opener()) for image_id, opener in openers.items()}

    def make(self, step: int) -> Batch:
        """Return batch number `step`."""
        rng = np.random.default_rng([self.recipe.seed, 1, step])
        pictures: list[Picture] = []
        asked: list[Asked] = []
        recipe = self.recipe
        drawers = (
            (self._real, recipe.real_pictures, recipe.single_questions),
            (self._single, recipe.single_pictures, recipe.single_questions),
            (self._scene, recipe.scene_pictures, recipe.scene_questions),
        )
        grounds: list[Ground] = []
        for part, pictures_wanted, questions_each in drawers:
            for _ in range(pictures_wanted):
                picture, pairs, scene = part(rng, questions_each)
                grounds.append(_ground(scene, [question for question, _ in pairs]))
                asked += [(len(pictures), _unmark(question, rng), answer) for question, answer in pairs]
                pictures.append(picture)
        batch = encode(self.tokenizer, pictures, asked)
        parts = [parts_of_tokens(self.tokenizer.encode(question).tokens, question) for _, question, _ in asked]
        return replace(
            batch,
            token_roles=_pad([roles for roles, _ in parts], QUESTION_LENGTH, IGNORED),
            token_colors=_pad([colors for _, colors in parts], QUESTION_LENGTH, IGNORED),
            patch_colors=np.stack([ground[0] for ground in grounds]),
            patch_shapes=np.stack([ground[1] for ground in grounds]),
            patch_asked=np.concatenate([ground[2] for ground in grounds]),
            asked_counts=np.concatenate([ground[3] for ground in grounds]),
        )

    def _real(self, rng: np.random.Generator, count: int) -> Drawn:
        image_id = choose(rng, list(self.questions))
        pairs = self.questions[image_id]
        chosen = rng.permutation(len(pairs))[:count]
        return augment(self.pictures[image_id], rng), [pairs[int(index)] for index in chosen], None

    def _single(self, rng: np.random.Generator, count: int) -> Drawn:
        scene = single_shape_scene(rng)
        pairs = [fill(choose(rng, self.templates), scene.objects[0], rng) for _ in range(count)]
        return np.asarray(render(scene)), pairs, scene

    def _scene(self, rng: np.random.Generator, count: int) -> Drawn:
        scene = random_scene(rng)
        questions = ask(scene, rng, count, SCENE_TYPE_WEIGHTS)
        return np.asarray(render(scene)), [(question.text, question.answer) for question in questions], scene


def stream(recipe: Recipe, tokenizer: Tokenizer, first: int) -> Generator[Batch, None, None]:
    """Yield batches `first`, `first + 1`, ... without end, made ahead by one background process."""
    context = mp.get_context("spawn")
    queue: Queue[Any] = context.Queue(QUEUE_LENGTH)
    worker = context.Process(target=_work, args=(recipe, tokenizer.to_str(), first, queue), daemon=True)
    worker.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        worker.terminate()
        worker.join()


def _work(recipe: Recipe, tokenizer_json: str, first: int, queue: Queue[Any]) -> None:
    try:
        maker, step = BatchMaker(recipe, Tokenizer.from_str(tokenizer_json)), first
        while True:
            queue.put(maker.make(step))
            step += 1
    except KeyboardInterrupt:
        return
    except Exception as error:  # noqa: BLE001 - handed to the trainer, which raises it
        queue.put(error)


def _training_part(dataset: Dataset) -> Iterator[Sample]:
    held_out = {str(index) for index in range(4000 - VALIDATION_PICTURES, 4000)}
    return (sample for sample in dataset if sample.image_id not in held_out)


def _ground(scene: Scene | None, questions: list[str]) -> Ground:
    if scene is None:
        nothing = np.full(PATCHES, IGNORED)
        return nothing, nothing, np.full((len(questions), PATCHES), IGNORED), np.full((len(questions), 2), IGNORED)
    objects = object_of_patch(scene)
    colors, shapes = describe(scene, objects)
    roles = [roles_of(scene, question) for question in questions]
    counts = np.array([[parts.count(FIRST), parts.count(SECOND)] for parts in roles])
    return colors, shapes, np.stack([spread(parts, objects) for parts in roles]), counts


def _unmark(question: str, rng: np.random.Generator) -> str:
    return question.rstrip("?") if rng.random() < UNMARKED_SHARE else question


def _pad(rows: list[list[int]], length: int, value: int) -> NDArray[np.int64]:
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
