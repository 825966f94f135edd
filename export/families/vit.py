"""ViT for image classification.

Source: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ViTForImageClassification

from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.preprocessing import prepare

GRAPH = "classifier"


class Logits(nn.Module):
    """`pixel_values` (batch, 3, height, width) to `logits` (batch, labels)."""

    def __init__(self, model: ViTForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values).logits
        return logits


class ViT:
    """The family `vit`: one graph."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(ViTForImageClassification, source.path)
        names = model.config.id2label
        return Loaded(
            model=model,
            task="image-classification",
            pipeline="classification",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=model.config.image_size),
            labels=[names[index] for index in range(model.config.num_labels)],
        )

    def plans(self, loaded: Loaded) -> Plans:
        return {GRAPH: lambda: _plan(loaded.model)}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size = loaded.model.config.image_size
        yield _case(loaded.model, random_pixels(3, height=size, width=size), "random")
        for rgb, _ in questions_by_picture():
            yield _case(loaded.model, _pixels(loaded, rgb), "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        found: list[AnswerCase] = []
        for rgb, _ in questions_by_picture():
            best = int(loaded.model(_pixels(loaded, rgb)).logits.argmax())
            found.append(AnswerCase(image=rgb, question="", expected=loaded.labels[best]))
        return found


def _plan(model: ViTForImageClassification) -> GraphPlan:
    size = model.config.image_size
    return GraphPlan(
        name=GRAPH,
        module=Logits(model),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "batch"},),
        input_names=["pixel_values"],
        output_names=["logits"],
    )


def _case(model: ViTForImageClassification, pixels: Tensor, samples: Samples) -> Case:
    expected = {"logits": model(pixels).logits}
    return Case(graph=GRAPH, samples=samples, inputs=arrays({"pixel_values": pixels}), expected=arrays(expected))


def _pixels(loaded: Loaded, rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
