"""BLIP-2: a vision tower, a Q-Former, and OPT or Flan-T5; or the Q-Former's own heads for matching and retrieval.

Source: BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models (ICML 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from edgevqa.export.answers import Asked, asked_answers, open_tokenizer
from edgevqa.export.components import query_language as language
from edgevqa.export.components.eva import random_states, vision_plan
from edgevqa.export.components.qformer import QFormer
from edgevqa.export.families import blip2_retrieval as retrieval
from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.preprocessing import prepare

HEADS = ("Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval")
PROMPTS = {"opt": "Question: {question} Answer:", "t5": "Question: {question} Short answer:"}  # the paper's


class Queries(nn.Module):
    """`image_states` (image, tokens, vision) to `image_embeds` (image, queries, text)."""

    def __init__(self, model: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.query_tokens, self.language_projection = model.query_tokens, model.language_projection
        self.queries = language.queries_of(model)
        self.qformer = QFormer(model.qformer, queries=self.queries, words=False)
        self.layernorm = model.qformer.layernorm

    def forward(self, image_states: Tensor) -> Tensor:
        queries = self.layernorm(self.query_tokens.expand(image_states.shape[0], -1, -1))
        out: Tensor = self.language_projection(self.qformer(queries, image_states))
        return out


class Blip2:
    """The family `blip2`: `vision` and `qformer`, then the graphs of the language model; or those of `Retrieval`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        if architecture(source.path, HEADS) == "Blip2ForImageTextRetrieval":
            return retrieval.load(source)
        model = load_pretrained(Blip2ForConditionalGeneration, source.path)
        pipeline = language.flow(model)
        text, generation = language.language_text(model, source.path, PROMPTS[model.config.text_config.model_type])
        return Loaded(
            model=model,
            task="visual-question-answering",
            pipeline=pipeline,
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(
                source.path, size=model.config.vision_config.image_size, tokens=language.queries_of(model)
            ),
            text=text,
            generation=generation,
        )

    def plans(self, loaded: Loaded) -> Plans:
        model = loaded.model
        if isinstance(model, Blip2ForImageTextRetrieval):
            return retrieval.plans(model)
        return {
            "vision": lambda: vision_plan(model.vision_model),
            "qformer": lambda: _qformer_plan(model),
            **language.language_plans(model),
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        model = loaded.model
        if isinstance(model, Blip2ForImageTextRetrieval):
            yield from retrieval.cases(loaded)
            return
        size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
        ids = language.random_ids(vocabulary, (7, 4), never=model.config.image_token_id)
        yield from _cases(model, random_pixels(2, height=size, width=size), ids, "random")
        tokenizer = open_tokenizer(loaded.required_text)
        for rgb, questions in questions_by_picture()[:2]:
            pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
            asked = [tokenizer.question(question).ids for question in questions]
            yield from _cases(model, pixels, asked, "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        if isinstance(loaded.model, Blip2ForImageTextRetrieval):
            return retrieval.answer_cases(loaded)

        def generate(asked: Asked) -> Tensor:
            if not asked.question:
                return language.describe(loaded, asked.prepared)
            return language.generate(loaded, asked.prepared, asked.ids)

        return asked_answers(loaded, generate, also=() if loaded.required_text.spec.required else ("",))


def _qformer_plan(model: Blip2ForConditionalGeneration) -> GraphPlan:
    return GraphPlan(
        name="qformer",
        module=Queries(model),
        args=(random_states(model.vision_model, 2),),
        dynamic_shapes=({0: "image"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
    )


def _cases(
    model: Blip2ForConditionalGeneration, pixels: Tensor, questions: Sequence[Sequence[int]], samples: Samples
) -> Iterator[Case]:
    found: Any = model.get_image_features(pixels)
    states, embeds = found.last_hidden_state, found.pooler_output
    given: tuple[tuple[str, dict[str, Tensor], dict[str, Tensor]], ...] = (
        ("vision", {"pixel_values": pixels}, {"image_states": states}),
        ("qformer", {"image_states": states}, {"image_embeds": embeds}),
    )
    for graph, inputs, expected in given:
        yield Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))
    yield from language.language_cases(model, embeds.expand(len(questions), -1, -1), questions, samples)
