"""BLIP-2's Q-Former on its own: image-text matching (bidirectional mask) and contrastive retrieval (uni-modal mask).

Source: BLIP-2 (ICML 2023). The third mask of its pre-training, causal for generation, has no head in transformers; the
Q-Former's component has it (`sight_bias`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForImageTextRetrieval

from edgevqa.export import assets
from edgevqa.export.answers import open_tokenizer
from edgevqa.export.components.eva import random_states, vision_plan
from edgevqa.export.components.qformer import QFormer, embed_words, sight_bias
from edgevqa.export.components.query_language import padded, qformer_text, queries_of, random_ids
from edgevqa.export.dual_encoders import normalised
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.preprocessing import prepare

WORDS = 6  # to trace with; the axis is dynamic
CHOICES = ("a red triangle", "a picture of a blue rectangle", "two dogs")


class ImageEncoder(nn.Module):
    """`image_states` (image, tokens, vision) to `image_embeds` (image, queries, width), each of length 1."""

    def __init__(self, model: Blip2ForImageTextRetrieval) -> None:
        super().__init__()
        self.query_tokens, self.vision_projection = model.query_tokens, model.vision_projection
        self.qformer = QFormer(model.qformer, queries=queries_of(model), words=False)
        self.layernorm = model.qformer.layernorm

    def forward(self, image_states: Tensor) -> Tensor:
        queries = self.layernorm(self.query_tokens.expand(image_states.shape[0], -1, -1))
        return normalised(self.vision_projection(self.qformer(queries, image_states)))


class TextEncoder(nn.Module):
    """`input_ids`, `attention_mask` (batch, words) to `text_embeds` (batch, width) of length 1."""

    def __init__(self, model: Blip2ForImageTextRetrieval) -> None:
        super().__init__()
        self.embeddings, self.text_projection = model.embeddings, model.text_projection
        self.qformer = QFormer(model.qformer, queries=0, words=True)
        self.layernorm = model.qformer.layernorm

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.layernorm(embed_words(self.embeddings, input_ids))
        states = self.qformer(words, None, sight_bias("bidirectional", 0, attention_mask))
        return normalised(self.text_projection(states[:, 0]))


class Matcher(nn.Module):
    """`image_states` (1 or batch, tokens, vision) and a text to `match_logits` (batch, 2): it fits not, it fits."""

    def __init__(self, model: Blip2ForImageTextRetrieval) -> None:
        super().__init__()
        self.query_tokens, self.embeddings, self.itm_head = model.query_tokens, model.embeddings, model.itm_head
        self.queries = queries_of(model)
        self.qformer = QFormer(model.qformer, queries=self.queries, words=True)
        self.layernorm = model.qformer.layernorm

    def forward(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        batch = input_ids.shape[0]
        queries = self.query_tokens.expand(batch, -1, -1)
        states = self.layernorm(torch.cat([queries, embed_words(self.embeddings, input_ids)], dim=1))
        bias = sight_bias("bidirectional", self.queries, attention_mask)
        out: Tensor = self.itm_head(self.qformer(states, image_states.expand(batch, -1, -1), bias))
        return out.mean(dim=1)


def load(source: Source) -> Loaded:
    """A folder of `Blip2ForImageTextRetrieval`."""
    model = load_pretrained(Blip2ForImageTextRetrieval, source.path)
    config = model.config.qformer_config
    # processors put image tokens before the text, which the model drops again: they need no row in its table
    vocabulary = max(int(config.vocab_size), int(model.config.image_token_id or 0) + 1)
    text = qformer_text(assets.tokenizer_bytes(source.path), config, vocab_size=vocabulary, required=False)
    return Loaded(
        model=model,
        task="image-text-matching",
        pipeline="matching",
        source=source_spec(source, model),
        model_info=model_info(model),
        image=fixed_image_spec(source.path, size=model.config.vision_config.image_size),
        text=text,
        # the heads compare plain cosines: transformers' forward has no temperature, and the matcher answers here anyway
        matching=MatchingSpec(scale=1.0, bias=0.0, activation="softmax"),
    )


def plans(model: Blip2ForImageTextRetrieval) -> Plans:
    """`vision` once a picture; from it the embeddings of both sides, and the matcher that reads both together."""
    return {
        "vision": lambda: vision_plan(model.vision_model),
        "image_encoder": lambda: _image_plan(model),
        "text_encoder": lambda: _text_plan(model),
        "matcher": lambda: _matcher_plan(model),
    }


def cases(loaded: Loaded) -> Iterator[Case]:
    """Every graph on random and on real samples, by transformers' own forward."""
    model = loaded.model
    size, vocabulary = model.config.vision_config.image_size, model.config.qformer_config.vocab_size
    pixels = random_pixels(2, height=size, width=size)
    yield from _cases(model, pixels, random_ids(vocabulary, (6, 4)), "random")
    tokenizer = open_tokenizer(loaded.required_text)
    for rgb, questions in questions_by_picture()[:2]:
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
        yield from _cases(model, pixels, [tokenizer.question(each).ids for each in questions], "real")


def answer_cases(loaded: Loaded) -> list[AnswerCase]:
    """Which of `CHOICES` the matching head thinks likeliest, and for every question whether it fits."""
    model, tokenizer = loaded.model, open_tokenizer(loaded.required_text)
    found: list[AnswerCase] = []
    for rgb, questions in questions_by_picture():
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])

        def fit(texts: Sequence[str], pixels: Tensor = pixels) -> Tensor:
            logits = _forward(
                model, pixels, *padded([tokenizer.question(text).ids for text in texts], pad=0), matching=True
            )
            out: Tensor = logits.logits_per_image[:, 1] - logits.logits_per_image[:, 0]
            return out

        best = CHOICES[int(fit(CHOICES).argmax())]
        found.append(AnswerCase(image=rgb, question="", expected=best, choices=CHOICES))
        for question in questions[:2]:
            text = "yes" if float(fit([question])) >= 0 else "no"
            found.append(AnswerCase(image=rgb, question=question, expected=text))
    return found


def _image_plan(model: Blip2ForImageTextRetrieval) -> GraphPlan:
    return GraphPlan(
        name="image_encoder",
        module=ImageEncoder(model),
        args=(random_states(model.vision_model, 2),),
        dynamic_shapes=({0: "image"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
    )


def _text_plan(model: Blip2ForImageTextRetrieval) -> GraphPlan:
    axes = {0: "batch", 1: "words"}
    return GraphPlan(
        name="text_encoder",
        module=TextEncoder(model),
        args=_texts(),
        dynamic_shapes=(axes, axes),
        input_names=["input_ids", "attention_mask"],
        output_names=["text_embeds"],
    )


def _matcher_plan(model: Blip2ForImageTextRetrieval) -> GraphPlan:
    axes = {0: "batch", 1: "words"}
    return GraphPlan(
        name="matcher",
        module=Matcher(model),
        args=(random_states(model.vision_model, 1), *_texts()),
        dynamic_shapes=(None, axes, axes),
        input_names=["image_states", "input_ids", "attention_mask"],
        output_names=["match_logits"],
        free_axes={"image_states": {0: "image"}},
    )


def _texts() -> tuple[Tensor, Tensor]:
    ids = torch.ones(2, WORDS, dtype=torch.int64)
    return ids, torch.ones_like(ids)


def _cases(
    model: Blip2ForImageTextRetrieval, pixels: Tensor, texts: Sequence[Sequence[int]], samples: Samples
) -> Iterator[Case]:
    ids, mask = padded(texts, pad=0)
    every = pixels.expand(len(texts), -1, -1, -1)  # the eager model takes a picture a text
    apart, together = (_forward(model, every, ids, mask, matching=each) for each in (False, True))
    states = apart.vision_model_output.last_hidden_state[: len(pixels)]
    words = {"input_ids": ids, "attention_mask": mask}
    found = (
        ("vision", {"pixel_values": pixels}, {"image_states": states}),
        ("image_encoder", {"image_states": states}, {"image_embeds": apart.image_embeds[: len(pixels)]}),
        ("text_encoder", words, {"text_embeds": apart.text_embeds}),
        ("matcher", {"image_states": states, **words}, {"match_logits": together.logits_per_image}),
    )
    for graph, inputs, expected in found:
        yield Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))


def _forward(model: Blip2ForImageTextRetrieval, pixels: Tensor, ids: Tensor, mask: Tensor, *, matching: bool) -> Any:
    """The eager forward; models that know an image token want it before the text, as their processor puts it."""
    token = model.config.image_token_id
    if token is not None:
        places = torch.full((len(ids), queries_of(model)), token)
        ids, mask = torch.cat([places, ids], dim=1), torch.cat([torch.ones_like(places), mask], dim=1)
    return model(
        pixel_values=pixels.expand(len(ids), -1, -1, -1),
        input_ids=ids,
        attention_mask=mask,
        use_image_text_matching_head=matching,
    )
