"""Encoders whose result is an array: features of a picture, and pictures restored from a part of their patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.decoding import Generated
from edgevqa.runtime.errors import BundleError, ConfigError, NotFiniteError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.images import Rgb
from edgevqa.runtime.manifest import ImageSpec, Manifest
from edgevqa.runtime.pipelines.base import Flow, Outcome, Pair, Picture, PipelineOptions, Request
from edgevqa.runtime.preprocessing import collate, prepare
from edgevqa.runtime.sessions.base import Array

ENCODER, DECODER = "encoder", "decoder"
FEATURES = "features"
"""The one label of these models, and the text of their answers."""
STATES, KEEP, RESTORE, PREDICTED = "last_hidden_state", "keep_index", "restore_index", "patch_values"
SEED = 0
_SMALLEST_VARIANCE = 1e-6  # as in the loss of the published model

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class PatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an encoder that may leave patches out cuts pictures: the `settings` of its preprocessing.

    `patches` are those of a picture, `patch` is a side in pixels, `mask_ratio` the share left out in training.
    `normalized` tells that each patch was predicted with mean 0 and variance 1.
    """

    patches: int
    patch: int
    mask_ratio: float
    normalized: bool = False


class Mask(msgspec.Struct, frozen=True):
    """Which patches an encoder sees.

    `keep` (kept,) are their numbers in the order in which they are read; `restore` (1 + patches,) are places in the
    encoder's states, of the class token and of each patch, with the place after the last for a patch left out.
    """

    keep: Integers
    restore: Integers

    @property
    def masked(self) -> NDArray[np.bool_]:
        """Which patches are left out, (patches,)."""
        found: NDArray[np.bool_] = self.restore[1:] > len(self.keep)
        return found


class Reconstruction(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of which the model saw a part.

    `picture` is RGB uint8 (height, width, 3): what it saw, and what it predicted for the rest. `seen` is the same with grey
    for the rest, `original` the whole picture in the model's size. `masked` (rows, columns) tells which patches were left
    out. `loss` is the mean squared error of the predicted values, in the scale that the model was trained on.
    """

    picture: Rgb
    seen: Rgb
    original: Rgb
    masked: NDArray[np.bool_]
    loss: float


class FeaturesFlow:
    """The graph `encoder`: the processor's inputs to arrays; and, of masked autoencoders, `decoder` to patches.

    Asked as if it could answer, it runs every graph once, so that calibrating, measuring and comparing see them, and
    answers "features" with confidence 1.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when the graph or a part of the manifest is missing."""
        graphs.require((ENCODER,))
        if manifest.image is None:
            raise BundleError("The manifest lacks 'image', which this pipeline needs. Export the bundle again.")
        self._graphs, self._image = graphs, manifest.image
        self._max_batch = options.max_batch
        self._patches = _patch_spec(manifest.image) if KEEP in graphs.inputs(ENCODER) else None

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Run every graph on every picture; the outcome is always the same."""
        pictures = list({pair.picture.key: pair.picture for pair in pairs}.values())
        self.features(pictures)
        if DECODER in self._graphs:
            self.reconstruct(pictures)
        found = Generated(tokens=(0,), total_log_probability=0.0)
        return [Outcome(generated=found, choices=(found,) * len(request.choices)) for _ in pairs]

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """The whole answer at once."""
        yield from self.answer([pair], request)

    def clear_caches(self) -> None:
        """Nothing is kept."""

    def features(self, pictures: Sequence[Picture]) -> list[dict[str, Floats]]:
        """The encoder's outputs for each picture, without the batch axis; all patches are seen, in their order."""
        mask = None if self._patches is None else _mask(np.arange(self._patches.patches), self._patches.patches)
        found: list[dict[str, Floats]] = []
        for first in range(0, len(pictures), self._max_batch):
            outputs = self._encode(self._prepared(pictures[first : first + self._max_batch]), mask)
            rows = len(next(iter(outputs.values())))
            found += [{name: value[row].astype(np.float32) for name, value in outputs.items()} for row in range(rows)]
        return found

    def reconstruct(
        self, pictures: Sequence[Picture], mask_ratio: float | None = None, seed: int = SEED
    ) -> list[Reconstruction]:
        """Leave out the same share of each picture's patches, drawn with `seed`, and predict them.

        Raises `ConfigError` for a model that cannot, and for a share that leaves nothing to see or to predict.
        """
        if self._patches is None or DECODER not in self._graphs:
            raise ConfigError(
                f"The bundle has no graph '{DECODER}' that predicts patches: its checkpoint holds an encoder alone. "
                "Export one of ViTMAEForPreTraining."
            )
        mask = draw_mask(self._patches, mask_ratio, seed)
        found: list[Reconstruction] = []
        for first in range(0, len(pictures), self._max_batch):
            inputs = self._prepared(pictures[first : first + self._max_batch])
            states = self._encode(inputs, mask)[STATES]
            restore = np.repeat(mask.restore[None], len(states), axis=0)
            predicted = self._run(DECODER, {STATES: states, RESTORE: restore})[PREDICTED]
            found += [
                assemble(pixels, values.astype(np.float32), mask, self._image)
                for pixels, values in zip(inputs["pixel_values"], predicted, strict=True)
            ]
        return found

    def _prepared(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        with self._graphs.statistics.timed("preprocess"):
            return collate([prepare(picture.rgb, self._image) for picture in pictures])

    def _encode(self, inputs: dict[str, Array], mask: Mask | None) -> dict[str, Array]:
        if mask is None:
            return self._run(ENCODER, inputs)
        batch = len(next(iter(inputs.values())))
        return self._run(ENCODER, {**inputs, KEEP: np.repeat(mask.keep[None], batch, axis=0)})

    def _run(self, graph: str, inputs: dict[str, Array]) -> dict[str, Array]:
        specs = self._graphs.inputs(graph)
        feeds = {name: value.astype(np.dtype(specs[name].dtype), copy=False) for name, value in inputs.items()}
        found = {name: value.numpy() for name, value in self._graphs.run(graph, feeds).items()}
        if not all(np.isfinite(value).all() for value in found.values()):
            raise NotFiniteError("features")
        return found


def features_flow(flow: Flow) -> FeaturesFlow:
    """The flow as one that gives features. Raises `ConfigError` for another."""
    if isinstance(flow, FeaturesFlow):
        return flow
    raise no_features()


def no_features() -> ConfigError:
    """What is said of a model that gives answers."""
    return ConfigError(
        "The bundle's model gives answers, not features. Take an encoder, such as ViTMAEModel or ViTModel "
        "(`edgevqa families` lists what can be exported)."
    )


def draw_mask(spec: PatchSpec, mask_ratio: float | None, seed: int) -> Mask:
    """The mask that `seed` draws, leaving out `mask_ratio` of the patches, or the share of training where None.

    As in the published model each patch draws a number, and those with the smallest are kept.
    """
    ratio = spec.mask_ratio if mask_ratio is None else mask_ratio
    kept = int(spec.patches * (1 - ratio)) if 0 <= ratio <= 1 else 0
    if not 1 <= kept < spec.patches:
        lowest, highest = 1 / spec.patches, 1 - 1 / spec.patches
        raise ConfigError(
            f"The mask ratio is {ratio}; expected {math.ceil(lowest * 1e3) / 1e3} to {math.floor(highest * 1e3) / 1e3}, so "
            f"that of {spec.patches} patches at least one is seen and one left out."
        )
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; expected a whole number of at least 0.")
    return _mask(np.argsort(noise(spec.patches, seed), kind="stable")[:kept], spec.patches)


def noise(patches: int, seed: int) -> NDArray[np.float64]:
    """The numbers that the patches draw, (patches,), in [0, 1)."""
    return np.random.default_rng(seed).random(patches)


def assemble(pixels: Floats, predicted: Floats, mask: Mask, image: ImageSpec) -> Reconstruction:
    """A reconstruction from normalised pixels (3, height, width) and predicted values (patches, patch * patch * 3)."""
    spec = _patch_spec(image)
    truth = _cut(pixels, spec.patch)  # (patches, patch * patch * 3)
    mean, deviation = np.zeros((1, 1)), np.ones((1, 1))
    if spec.normalized:
        mean = truth.mean(axis=1, keepdims=True)
        deviation = np.sqrt(truth.var(axis=1, keepdims=True, ddof=1) + _SMALLEST_VARIANCE)
    error = ((predicted - (truth - mean) / deviation) ** 2).mean(axis=1)
    masked, columns = mask.masked, pixels.shape[2] // spec.patch
    whole = np.where(masked[:, None], predicted * deviation + mean, truth)
    grey = np.where(masked[:, None], np.float64(0), truth)
    return Reconstruction(
        picture=_picture(whole, columns, spec.patch, image),
        seen=_picture(grey, columns, spec.patch, image),
        original=_picture(truth, columns, spec.patch, image),
        masked=masked.reshape(-1, columns),
        loss=float(error[masked].mean()),
    )


def _patch_spec(image: ImageSpec) -> PatchSpec:
    try:
        return msgspec.convert(image.settings, PatchSpec)
    except msgspec.ValidationError as error:
        raise BundleError(f"The manifest's preprocessing is wrong: {error}. Export the bundle again.") from error


def _mask(keep: Integers, patches: int) -> Mask:
    restore = np.full(1 + patches, len(keep) + 1, dtype=np.int64)
    restore[0] = 0
    restore[1 + keep] = 1 + np.arange(len(keep))
    return Mask(keep.astype(np.int64), restore)


def _cut(pixels: Floats, patch: int) -> NDArray[np.float64]:
    """(3, height, width) to (patches, patch * patch * 3), row by row, the colours of a pixel together."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    blocks = pixels.astype(np.float64).reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0)
    return blocks.reshape(rows * columns, -1)


def _picture(values: NDArray[np.float64], columns: int, patch: int, image: ImageSpec) -> Rgb:
    """Patches of normalised values as RGB uint8."""
    rows = len(values) // columns
    pixels = values.reshape(rows, columns, patch, patch, 3).transpose(0, 2, 1, 3, 4)
    pixels = pixels.reshape(rows * patch, columns * patch, 3)
    pixels = pixels * np.array(image.std or (1, 1, 1)) + np.array(image.mean or (0, 0, 0))
    found: Rgb = np.clip(np.rint(pixels / (image.rescale_factor or 1)), 0, 255).astype(np.uint8)
    return found
