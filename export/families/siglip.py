"""SigLIP: a picture's and a text's embedding in one space, each pair with a probability of its own.

Sources: Sigmoid Loss for Language Image Pre-Training (ICCV 2023); SigLIP 2 (2025), whose models for one picture size are
saved in this architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipModel

from edgevqa.export import assets, sentencepiece_files
from edgevqa.export.components.attention import attend, merge_heads, split_heads
from edgevqa.export.dual_encoders import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    closing_token,
    encoder_cases,
    matching_answers,
    matching_spec,
    normalised,
    padding_token,
    real_batches,
)
from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import random_pixels
from edgevqa.export.sources import Source, read_json
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized


class PoolingHead(nn.Module):
    """The picture's state (image, width): one learned query that attends to all patches.

    The query depends on nothing, so its projection is computed here, once; keys and values are Linears of their own.
    """

    query: Tensor

    def __init__(self, head: Any) -> None:
        super().__init__()
        attention = head.attention
        self.heads = attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.key, self.value = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])
        self.out_proj, self.layernorm, self.mlp = attention.out_proj, head.layernorm, head.mlp
        query = nn.functional.linear(head.probe, weights[0], biases[0]) * attention.head_dim**-0.5
        self.register_buffer("query", split_heads(query.detach(), self.heads), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        key, value = (split_heads(project(states), self.heads) for project in (self.key, self.value))
        pooled = self.out_proj(merge_heads(attend(self.query, key, value)))
        found: Tensor = (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
        return found


class ImageEncoder(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_embeds` (image, width), of length 1."""

    def __init__(self, model: SiglipModel) -> None:
        super().__init__()
        self.vision_model: Any = model.vision_model
        self.head = PoolingHead(self.vision_model.head)

    def forward(self, pixel_values: Tensor) -> Tensor:
        vision = self.vision_model
        states = vision.encoder(inputs_embeds=vision.embeddings(pixel_values)).last_hidden_state
        return normalised(self.head(vision.post_layernorm(states)))


class TextEncoder(nn.Module):
    """`input_ids` (batch, words) to `text_embeds` (batch, width), of length 1.

    Texts are padded to `words`, as in training, and padding is read like words: the state of the last place counts.
    """

    def __init__(self, model: SiglipModel) -> None:
        super().__init__()
        self.text_model: Any = model.text_model

    def forward(self, input_ids: Tensor) -> Tensor:
        text = self.text_model
        states = text.embeddings.token_embedding(input_ids) + text.embeddings.position_embedding.weight
        states = text.encoder(inputs_embeds=states).last_hidden_state[:, -1]
        return normalised(text.head(text.final_layer_norm(states)))


class Siglip:
    """The family `siglip`: `image_encoder` and `text_encoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        architecture(source.path, ("SiglipModel",))
        model = load_pretrained(SiglipModel, source.path)
        return Loaded(
            model=model,
            task="image-text-similarity",
            pipeline="matching",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=model.config.vision_config.image_size),
            text=_text(source, model.config.text_config),
            matching=matching_spec(model, "sigmoid"),
        )

    def plans(self, loaded: Loaded) -> Plans:
        return {IMAGE_ENCODER: lambda: _image_plan(loaded), TEXT_ENCODER: lambda: _text_plan(loaded)}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size = loaded.model.config.vision_config.image_size
        yield from _cases(loaded, random_pixels(3, height=size, width=size), _random_texts(loaded, 3), "random")
        for pixels, ids, _ in real_batches(loaded, _words(loaded)):
            yield from _cases(loaded, pixels, ids, "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return matching_answers(loaded, _words(loaded), masked=False)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight, made.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return made


def _words(loaded: Loaded) -> int:
    """The one length of texts."""
    words: int = loaded.model.config.text_config.max_position_embeddings
    return words


def _tokenizer(folder: Path) -> bytes:
    """The folder's `tokenizer.json`, or one made of its SentencePiece model."""
    if (folder / assets.TOKENIZER_NAME).is_file() or not (folder / sentencepiece_files.NAME).is_file():
        return assets.tokenizer_bytes(folder)
    settings = folder / "tokenizer_config.json"
    found = read_json(settings, what="it says how texts are cleaned") if settings.is_file() else {}
    return sentencepiece_files.siglip_tokenizer(folder, lower_case=bool(found.get("do_lower_case", True)))


def _text(source: Source, config: Any) -> Tokenized:
    data = _tokenizer(source.path)
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=config.max_position_embeddings,
        pad_token_id=padding_token(source.path, data, default=config.pad_token_id),
        eos_token_id=closing_token(data),
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
        args=(_random_texts(loaded, 2),),
        dynamic_shapes=({0: "batch"},),
        input_names=["input_ids"],
        output_names=["text_embeds"],
    )


def _random_texts(loaded: Loaded, batch: int) -> Tensor:
    """Ids (batch, words) of random words."""
    return torch.randint(0, loaded.model.config.text_config.vocab_size, (batch, _words(loaded)))


def _cases(loaded: Loaded, pixels: Tensor, ids: Tensor, samples: Samples) -> Iterator[Case]:
    found = loaded.model(input_ids=ids, pixel_values=pixels)
    yield from encoder_cases({"input_ids": ids}, found, pixels, samples)
