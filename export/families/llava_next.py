"""LLaVA-NeXT (LLaVA-1.6): LLaVA on the whole picture and on tiles of it.

Source: LLaVA-NeXT: Improved reasoning, OCR, and world knowledge (2024), as transformers computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration

from edgevqa.export.answers import Asked, asked_answers, expand, greedy
from edgevqa.export.components.llama import LlamaDecoder
from edgevqa.export.families.llava import case, language_cases, load_llava, selected_states, vision_plan
from edgevqa.export.pretrained import load_pretrained
from edgevqa.export.processors import RESAMPLES, load_image_processor, values
from edgevqa.export.samples import questions_by_picture
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared, prepare
from edgevqa.runtime.preprocessing.anyres import AnyresSettings, most_slots, most_tiles


class PackedProjector(nn.Module):
    """`image_states` (tiles, tokens, vision) and `pack_index` (slots,) to `image_embeds` (1, slots, hidden).

    The index takes the projected tokens, one tile after another, and the line break, which is the row after the last.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.multi_modal_projector, self.image_newline = inner.multi_modal_projector, inner.image_newline

    def forward(self, image_states: Tensor, pack_index: Tensor) -> Tensor:
        tokens = self.multi_modal_projector(image_states).flatten(0, 1)
        rows = torch.cat([tokens, self.image_newline[None]])
        return nn.functional.embedding(pack_index, rows)[None]


class LlavaNext:
    """The family `llava_next`: `vision` on all tiles, `projector` that also packs them, `language_decoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(LlavaNextForConditionalGeneration, source.path)
        if model.config.vision_feature_select_strategy != "default":
            raise CheckpointError(
                f"vision_feature_select_strategy is '{model.config.vision_feature_select_strategy}'; tiles can be put "
                "together with 'default' alone, which drops the class token."
            )
        return load_llava(source, model, _image_spec(source, model))

    def plans(self, loaded: Loaded) -> Plans:
        inner = loaded.model.model
        return {
            "vision": lambda: vision_plan(inner),
            "projector": lambda: _projector_plan(inner),
            "language_decoder": LlamaDecoder(inner.language_model, loaded.model.lm_head).plan,
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
        yield from _cases(loaded, prepare(noise, loaded.required_image), noise.shape, "random")
        for rgb, _ in questions_by_picture():
            yield from _cases(loaded, prepare(rgb, loaded.required_image), rgb.shape, "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return asked_answers(loaded, lambda asked: _generate(loaded, asked))


def _image_spec(source: Source, model: Any) -> ImageSpec:
    processor, vision = load_image_processor(source.path), model.config.vision_config
    settings = AnyresSettings(
        grid_pinpoints=[(int(height), int(width)) for height, width in processor.image_grid_pinpoints],
        patches=vision.image_size // vision.patch_size,
    )
    tile = (vision.image_size, vision.image_size)
    sides = {int(side) for side in dict(processor.size).values() if side is not None}
    if sides != {vision.image_size}:
        raise CheckpointError(f"The image processor cuts tiles of {sides}; the model takes {vision.image_size} pixels.")
    return ImageSpec(
        height=tile[0],
        width=tile[1],
        resize=None,
        crop=None,
        resample=RESAMPLES[int(processor.resample)],
        processor="anyres",
        settings=msgspec.to_builtins(settings),
        tokens=most_slots(settings, tile),
        axes={"image": (1, most_tiles(settings, tile), most_tiles(settings, tile))},
        **values(processor),
    )


def _projector_plan(inner: Any) -> GraphPlan:
    vision = inner.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    width = inner.multi_modal_projector.linear_1.in_features
    return GraphPlan(
        name="projector",
        module=PackedProjector(inner),
        args=(torch.randn(3, tokens, width), torch.arange(7)),
        dynamic_shapes=({0: "image"}, {0: "slots"}),
        input_names=["image_states", "pack_index"],
        output_names=["image_embeds"],
    )


def _cases(loaded: Loaded, prepared: Prepared, shape: Sequence[int], samples: Samples) -> Iterator[Case]:
    model = loaded.model
    pixels, index = (torch.from_numpy(prepared.inputs[name]) for name in ("pixel_values", "pack_index"))
    states = selected_states(model, pixels)
    sizes = torch.tensor([shape[:2]])
    found = model.model.get_image_features(pixels[None], image_sizes=sizes).pooler_output
    embeds = found[0][None]
    yield case("vision", samples, {"pixel_values": pixels}, {"image_states": states})
    yield case("projector", samples, {"image_states": states, "pack_index": index}, {"image_embeds": embeds})
    yield from language_cases(model, embeds.expand(2, -1, -1), samples)


def _generate(loaded: Loaded, asked: Asked) -> Tensor:
    inputs, token = asked.prepared.inputs, loaded.required_text.spec.image_token_id or 0
    prompt = expand(asked.ids, asked.prepared, image_token=token, slots=len(inputs["pack_index"]))
    found = greedy(
        loaded.model,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=torch.from_numpy(inputs["pixel_values"])[None],
        image_sizes=torch.tensor([asked.rgb.shape[:2]]),
    )
    return found[:, prompt.shape[1] :]
