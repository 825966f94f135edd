"""Perceiver: image classification by a small array of latents that attends to every pixel.

Source: Perceiver IO: A General Architecture for Structured Inputs & Outputs (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevqa.export.pretrained import architecture, label_names, load_pretrained, model_info, source_spec
from edgevqa.export.processors import RESAMPLES, fixed_image_spec, load_image_processor, values
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.preprocessing.cropped import CropSettings

GRAPH = "classifier"
LEARNED = "PerceiverForImageClassificationLearned"
ARCHITECTURES = (
    LEARNED,
    "PerceiverForImageClassificationFourier",
    "PerceiverForImageClassificationConvProcessing",
)


class Logits(nn.Module):
    """`pixel_values` (batch, 3, height, width) to `logits` (batch, labels).

    What does not depend on the picture is computed once, not for every picture of a batch as the eager model does: the
    positions of the pixels with their projection, and the latents' queries, which are broadcast.
    """

    def __init__(self, perceiver: Any, *, height: int, width: int) -> None:
        super().__init__()
        self.encoder, self.decoder = perceiver.encoder, perceiver.decoder.decoder
        self.latents = perceiver.embeddings.latents
        reader = perceiver.input_preprocessor
        self.convolution = {"conv": "convnet", "conv1x1": "convnet_1x1"}.get(reader.prep_type)
        self.reader = nn.Identity() if self.convolution is None else getattr(reader, self.convolution)
        with torch.no_grad():
            positions = _positions(reader, self.reader(torch.zeros(1, 3, height, width)).shape[2:])
        self.positions = nn.Parameter(positions.clone())  # (1, pixels, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = self.reader(pixel_values).flatten(2).transpose(1, 2)  # (batch, pixels, channels)
        inputs = torch.cat([pixels, self.positions.expand(pixels.shape[0], -1, -1)], dim=2)
        states = self.encoder(self.latents[None], inputs=inputs).last_hidden_state
        query = self.decoder.positions_projection(self.decoder.output_position_encodings(1))
        logits: Tensor = self.decoder(query, states).logits[:, 0]
        return logits


def _positions(reader: Any, sides: Any) -> Tensor:
    """The encoding of every pixel's place (1, pixels, width)."""
    if reader.position_encoding_type == "trainable":
        places = reader.position_embeddings(1)
    else:
        places = reader.position_embeddings(list(sides), 1, device=torch.device("cpu"), dtype=torch.float32)
    projected: Tensor = reader.positions_projection(places)
    return projected


class Perceiver:
    """The family `perceiver`: one graph."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        name = architecture(source.path, ARCHITECTURES)
        model = load_pretrained(getattr(transformers, name), source.path)
        image = cropped_spec(source.path)
        if name == LEARNED and (image.height, image.width) != (model.config.image_size,) * 2:
            raise CheckpointError(
                f"The image processor of {source.path} makes pictures of {image.height} x {image.width} pixels; the model "
                f"has learned the positions of {model.config.image_size} x {model.config.image_size}."
            )
        return Loaded(
            model=model,
            task="image-classification",
            pipeline="classification",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=image,
            labels=label_names(model.config, source.path),
        )

    def plans(self, loaded: Loaded) -> Plans:
        return {GRAPH: lambda: _plan(loaded)}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        yield _case(loaded.model, _random(loaded, 3), "random")
        for rgb, _ in questions_by_picture():
            yield _case(loaded.model, _pixels(loaded, rgb), "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        found: list[AnswerCase] = []
        for rgb, _ in questions_by_picture():
            best = int(loaded.model(pixel_values=_pixels(loaded, rgb)).logits.argmax())
            found.append(AnswerCase(image=rgb, question="", expected=loaded.labels[best], tokens=(best,)))
        return found


def cropped_spec(folder: Path) -> ImageSpec:
    """The folder's Perceiver processor: a central share of the picture, resized. Raises `CheckpointError`."""
    processor = load_image_processor(folder)
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    sides = [size.get(side) for side in ("height", "width")]
    if not processor.do_resize or None in sides:
        raise CheckpointError(f"The image processor of {folder} resizes to {size}; expected a height and a width.")
    height, width = (int(side or 0) for side in sides)
    if not processor.do_center_crop:
        return fixed_image_spec(folder, size=(height, width))
    shares = CropSettings(height_share=height / crop["height"], width_share=width / crop["width"])
    return ImageSpec(
        height=height,
        width=width,
        resize={"height": height, "width": width},
        crop=None,
        resample=RESAMPLES[int(processor.resample)],
        processor="cropped",
        settings=msgspec.to_builtins(shares),
        **values(processor),
    )


def _plan(loaded: Loaded) -> GraphPlan:
    image = loaded.required_image
    return GraphPlan(
        name=GRAPH,
        module=Logits(loaded.model.perceiver, height=image.height, width=image.width),
        args=(_random(loaded, 2),),
        dynamic_shapes=({0: "batch"},),
        input_names=["pixel_values"],
        output_names=["logits"],
    )


def _case(model: Any, pixels: Tensor, samples: Samples) -> Case:
    expected = {"logits": model(pixel_values=pixels).logits}
    return Case(graph=GRAPH, samples=samples, inputs=arrays({"pixel_values": pixels}), expected=arrays(expected))


def _random(loaded: Loaded, images: int) -> Tensor:
    return random_pixels(images, height=loaded.required_image.height, width=loaded.required_image.width)


def _pixels(loaded: Loaded, rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
