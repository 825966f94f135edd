"""ViT: image classification, or features where the checkpoint has no head.

Source: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTModel

from edgevqa.export.components.vit import vit_states
from edgevqa.export.pretrained import architecture, label_names, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.pipelines.features import ENCODER, FEATURES, STATES
from edgevqa.runtime.preprocessing import prepare

CLASSIFIER = "classifier"
HEADS: dict[str, Any] = {"ViTForImageClassification": ViTForImageClassification, "ViTModel": ViTModel}


class Logits(nn.Module):
    """`pixel_values` (batch, 3, height, width) to `logits` (batch, labels)."""

    def __init__(self, model: ViTForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(vit_states(self.model.vit, pixel_values)[:, 0])
        return logits


class States(nn.Module):
    """`pixel_values` (batch, 3, height, width) to `last_hidden_state` (batch, 1 + patches, width)."""

    def __init__(self, model: ViTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return vit_states(self.model, pixel_values)


class ViT:
    """The family `vit`: one graph, `classifier`, or `encoder` of a checkpoint without a head."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        name = architecture(source.path, HEADS)
        # the pooler is not exported: many checkpoints of the plain model have none
        model = load_pretrained(HEADS[name], source.path, ignored=("pooler.",) if name == "ViTModel" else ())
        classifies = name != "ViTModel"
        return Loaded(
            model=model,
            task="image-classification" if classifies else "image-feature-extraction",
            pipeline="classification" if classifies else "features",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=model.config.image_size),
            labels=label_names(model.config, source.path) if classifies else [FEATURES],
        )

    def plans(self, loaded: Loaded) -> Plans:
        return {_names(loaded)[0]: lambda: _plan(loaded)}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size = loaded.model.config.image_size
        yield _case(loaded, random_pixels(3, height=size, width=size), "random")
        for rgb, _ in questions_by_picture():
            yield _case(loaded, _pixels(loaded, rgb), "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        found: list[AnswerCase] = []
        for rgb, _ in questions_by_picture():
            best = int(_eager(loaded, _pixels(loaded, rgb)).argmax()) if loaded.pipeline == "classification" else 0
            found.append(AnswerCase(image=rgb, question="", expected=loaded.labels[best], tokens=(best,)))
        return found


def _names(loaded: Loaded) -> tuple[str, str]:
    """The graph and its output."""
    return (CLASSIFIER, "logits") if loaded.pipeline == "classification" else (ENCODER, STATES)


def _plan(loaded: Loaded) -> GraphPlan:
    (name, output), size = _names(loaded), loaded.model.config.image_size
    return GraphPlan(
        name=name,
        module=Logits(loaded.model) if name == CLASSIFIER else States(loaded.model),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "batch"},),
        input_names=["pixel_values"],
        output_names=[output],
    )


def _case(loaded: Loaded, pixels: Tensor, samples: Samples) -> Case:
    graph, output = _names(loaded)
    expected = arrays({output: _eager(loaded, pixels)})
    return Case(graph=graph, samples=samples, inputs=arrays({"pixel_values": pixels}), expected=expected)


def _eager(loaded: Loaded, pixels: Tensor) -> Tensor:
    found: Tensor = getattr(loaded.model(pixels), _names(loaded)[1])
    return found


def _pixels(loaded: Loaded, rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
