"""CLIP: a picture's and a text's embedding in one space.

Source: Learning Transferable Visual Models From Natural Language Supervision (ICML 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from edgevqa.export import assets
from edgevqa.export.components.attention import MASKED
from edgevqa.export.dual_encoders import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    closing_token,
    encoder_cases,
    matching_answers,
    matching_spec,
    normalised,
    padded,
    real_batches,
)
from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized
from edgevqa.runtime.errors import CheckpointError

LEGACY_END = 2
"""What older configurations name as the end token, wrongly: their end is the highest id of a text."""


class ImageEncoder(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_embeds` (image, width), of length 1."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        return normalised(self.visual_projection(self.vision_model(pixel_values).pooler_output))


class TextEncoder(nn.Module):
    """`input_ids` (batch, words) to `text_embeds` (batch, width), of length 1.

    It takes no mask: what is read is the state of the first end token, which sees nothing of the padding behind it.
    """

    bias: Tensor
    nearness: Tensor

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        text: Any = model.text_model
        self.text_model, self.text_projection = text, model.text_projection
        self.end = text.eos_token_id
        places = text.embeddings.position_embedding.num_embeddings
        self.register_buffer("bias", torch.full((places, places), MASKED).triu(1)[None, None], persistent=False)
        self.register_buffer("nearness", torch.arange(places, 0, -1, dtype=torch.int32)[None], persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        words, text = input_ids.shape[1], self.text_model
        states = text.embeddings.token_embedding(input_ids) + text.embeddings.position_embedding.weight[:words]
        states = text.encoder(inputs_embeds=states, attention_mask=self.bias[:, :, :words, :words]).last_hidden_state
        ends = input_ids == (input_ids.amax(dim=-1, keepdim=True) if self.end == LEGACY_END else self.end)
        # of several ends, which padding may be, the first: no two have one nearness, so no tie is left to the backend
        first = (ends.int() * self.nearness[:, :words]).argmax(dim=-1)
        pooled = states[torch.arange(states.shape[0]), first]
        return normalised(self.text_projection(text.final_layer_norm(pooled)))


class Clip:
    """The family `clip`: `image_encoder` and `text_encoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        architecture(source.path, ("CLIPModel",))
        model = load_pretrained(CLIPModel, source.path)
        return Loaded(
            model=model,
            task="image-text-similarity",
            pipeline="matching",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=model.config.vision_config.image_size),
            text=_text(source, model.config.text_config),
            matching=matching_spec(model, "softmax"),
        )

    def plans(self, loaded: Loaded) -> Plans:
        return {IMAGE_ENCODER: lambda: _image_plan(loaded), TEXT_ENCODER: lambda: _text_plan(loaded)}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size = loaded.model.config.vision_config.image_size
        yield from _cases(loaded, random_pixels(3, height=size, width=size), *_random_texts(loaded, 3), "random")
        for pixels, ids, mask in real_batches(loaded):
            yield from _cases(loaded, pixels, ids, mask, "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return matching_answers(loaded, masked=True)


def _text(source: Source, config: Any) -> Tokenized:
    """The tokenizer. Raises `CheckpointError` where its end token is not the one whose state the model reads."""
    data = assets.tokenizer_bytes(source.path)
    end = closing_token(data)
    if end is None or config.eos_token_id not in (LEGACY_END, end):
        raise CheckpointError(
            f"The tokenizer of {source.path} ends texts with {'nothing' if end is None else f'token {end}'}; the model reads "
            f"the state of token {config.eos_token_id} (text_config.eos_token_id). Take the tokenizer of the model's page."
        )
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=config.max_position_embeddings,
        pad_token_id=end,  # the first end is read, so what follows it does not matter
        eos_token_id=end,
        vocab_size=config.vocab_size,
        required=False,
    )
    return Tokenized(data=data, spec=spec)


def _image_plan(loaded: Loaded) -> GraphPlan:
    size = loaded.model.config.vision_config.image_size
    return GraphPlan(
        name=IMAGE_ENCODER,
        module=ImageEncoder(loaded.model),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=["image_embeds"],
    )


def _text_plan(loaded: Loaded) -> GraphPlan:
    return GraphPlan(
        name=TEXT_ENCODER,
        module=TextEncoder(loaded.model),
        args=(_random_texts(loaded, 2)[0],),
        dynamic_shapes=({0: "batch", 1: "words"},),
        input_names=["input_ids"],
        output_names=["text_embeds"],
    )


def _random_texts(loaded: Loaded, batch: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (batch, words) of random words, each text one shorter than the one before and closed."""
    end = loaded.required_text.spec.eos_token_id or 0
    longest = min(9, loaded.model.config.text_config.max_position_embeddings)
    rows = [[*torch.randint(0, end, (longest - 1 - row,)).tolist(), end] for row in range(batch)]
    return padded(loaded, rows)


def _cases(loaded: Loaded, pixels: Tensor, ids: Tensor, mask: Tensor, samples: Samples) -> Iterator[Case]:
    found = loaded.model(input_ids=ids, pixel_values=pixels, attention_mask=mask)
    yield from encoder_cases({"input_ids": ids}, found, pixels, samples)
