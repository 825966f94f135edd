"""BLIP's image-text matching head, and the embeddings that it was trained on by contrast.

Source: BLIP: Bootstrapping Language-Image Pre-training (ICML 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval

from edgevqa.export.answers import open_tokenizer
from edgevqa.export.components.blip import BlipTextEncoder
from edgevqa.export.components.blip_parts import (
    image_shape,
    image_size,
    questions,
    tokenized,
    vision_case,
    vision_plan,
)
from edgevqa.export.components.cross import BATCH, QUESTION_AXES, WORDS
from edgevqa.export.dual_encoders import IMAGE_ENCODER, TEXT_ENCODER, padded
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_questions
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.preprocessing import prepare

MATCHER = "matcher"
LEAST = 1e-12  # length that a vector is divided by at least, as in the model
CHOICES = 4


class ImageEncoder(nn.Module):
    """`image_states` (image, tokens, vision) to `image_embeds` (image, width) of length 1: the class token, projected."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_proj = model.vision_proj

    def forward(self, image_states: Tensor) -> Tensor:
        return _unit(self.vision_proj(image_states[:, 0]))


class TextEncoder(nn.Module):
    """`input_ids`, `attention_mask` (batch, words) to `text_embeds` (batch, width) of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_encoder, self.text_proj = BlipTextEncoder(model.text_encoder), model.text_proj

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _unit(self.text_proj(self.text_encoder(input_ids, attention_mask)[:, 0]))


class Matcher(nn.Module):
    """`image_states` (1 or batch, tokens, vision) and a text to `match_logits` (batch, 2): it fits not, it fits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_encoder, self.itm_head = BlipTextEncoder(model.text_encoder), model.itm_head

    def forward(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.itm_head(self.text_encoder(input_ids, attention_mask, image_states)[:, 0])
        return logits


class Retrieval:
    """BlipForImageTextRetrieval: what `vision` gives of a picture serves the matcher and the picture's embedding."""

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(BlipForImageTextRetrieval, source.path)
        return Loaded(
            model=model,
            task="image-text-matching",
            pipeline="matching",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=image_size(model)),
            text=tokenized(source.path, model, required=False),
            # the checkpoint has no temperature: transformers' forward compares plain cosines, and the matcher answers here
            matching=MatchingSpec(scale=1.0, bias=0.0, activation="softmax"),
        )

    def plans(self, model: Any) -> Plans:
        return {
            "vision": lambda: vision_plan(model, "image_states"),
            IMAGE_ENCODER: lambda: _image_plan(model),
            TEXT_ENCODER: lambda: _text_plan(model),
            MATCHER: lambda: _matcher_plan(model),
        }

    def cases(self, loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
        model = loaded.model
        states = model.vision_model(pixels).last_hidden_state
        yield vision_case(pixels, {"image_states": states}, samples)
        ids, mask = questions(loaded, len(pixels), samples)
        words = {"input_ids": ids, "attention_mask": mask}
        alone = model.text_encoder(ids, mask).last_hidden_state
        image = nn.functional.normalize(model.vision_proj(states[:, 0]), dim=-1)
        text = nn.functional.normalize(model.text_proj(alone[:, 0]), dim=-1)
        yield _case(IMAGE_ENCODER, samples, {"image_states": states}, {"image_embeds": image})
        yield _case(TEXT_ENCODER, samples, words, {"text_embeds": text})
        matched = model(pixel_values=pixels, **words).itm_score
        yield _case(MATCHER, samples, {"image_states": states, **words}, {"match_logits": matched})
        first = model(pixel_values=pixels[:1].expand(len(pixels), -1, -1, -1), **words).itm_score
        yield _case(MATCHER, samples, {"image_states": states[:1], **words}, {"match_logits": first})

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        """The likeliest of some texts for every packaged picture, and whether the first of them fits."""
        texts = list(dict.fromkeys(text for _, asked in questions_by_picture() for text in asked))[:CHOICES]
        tokenizer = open_tokenizer(loaded.required_text)
        ids, mask = padded(loaded, [tokenizer.question(text).ids for text in texts])
        found: list[AnswerCase] = []
        for rgb, _ in questions_by_picture():
            pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
            many = pixels.expand(len(texts), -1, -1, -1)
            scores = loaded.model(pixel_values=many, input_ids=ids, attention_mask=mask).itm_score
            odds = scores[:, 1] - scores[:, 0]
            best = texts[int(odds.argmax())]
            found.append(AnswerCase(image=rgb, question="", expected=best, choices=tuple(texts)))
            fits = "yes" if float(odds[0]) >= 0 else "no"
            found.append(AnswerCase(image=rgb, question=texts[0], expected=fits))
        return found


def _image_plan(model: Any) -> GraphPlan:
    return GraphPlan(
        name=IMAGE_ENCODER,
        module=ImageEncoder(model),
        args=(torch.randn(BATCH, *image_shape(model)),),
        dynamic_shapes=({0: "image"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
    )


def _text_plan(model: Any) -> GraphPlan:
    return GraphPlan(
        name=TEXT_ENCODER,
        module=TextEncoder(model),
        args=_random_texts(model),
        dynamic_shapes=(QUESTION_AXES, QUESTION_AXES),
        input_names=["input_ids", "attention_mask"],
        output_names=["text_embeds"],
    )


def _matcher_plan(model: Any) -> GraphPlan:
    return GraphPlan(
        name=MATCHER,
        module=Matcher(model),
        args=(torch.randn(1, *image_shape(model)), *_random_texts(model)),
        dynamic_shapes=(None, QUESTION_AXES, QUESTION_AXES),
        input_names=["image_states", "input_ids", "attention_mask"],
        output_names=["match_logits"],
        free_axes={"image_states": {0: "image"}},
    )


def _random_texts(model: Any) -> tuple[Tensor, Tensor]:
    return random_questions(BATCH, WORDS, vocab_size=model.config.text_config.vocab_size)


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=LEAST)
    return unit


def _case(graph: str, samples: Samples, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> Case:
    return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))
