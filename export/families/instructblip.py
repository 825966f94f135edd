"""InstructBLIP: a vision tower, a Q-Former that reads the question too, and Flan-T5 or Vicuna.

Source: InstructBLIP: Towards General-purpose Vision-Language Models with Instruction Tuning (NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import InstructBlipForConditionalGeneration

from edgevqa.export import assets
from edgevqa.export.answers import Asked, asked_answers, open_tokenizer
from edgevqa.export.components import query_language as language
from edgevqa.export.components.eva import random_states, vision_plan
from edgevqa.export.components.qformer import QFormer, embed_words, sight_bias
from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.preprocessing import prepare

HEADS = ("InstructBlipForConditionalGeneration",)
QFORMER = "qformer"
QFORMER_FOLDER = "qformer_tokenizer"  # where the processor keeps it
WORDS = 5  # to trace with; the axis is dynamic


class Queries(nn.Module):
    """`image_states` (1 or batch, tokens, vision) and the question to `image_embeds` (batch, queries, text)."""

    def __init__(self, model: InstructBlipForConditionalGeneration) -> None:
        super().__init__()
        self.query_tokens, self.language_projection = model.query_tokens, model.language_projection
        self.queries = language.queries_of(model)
        self.qformer = QFormer(model.qformer, queries=self.queries, words=True)
        self.embeddings = model.qformer.embeddings

    def forward(self, image_states: Tensor, qformer_input_ids: Tensor, qformer_attention_mask: Tensor) -> Tensor:
        batch = qformer_input_ids.shape[0]
        queries = self.query_tokens.expand(batch, -1, -1)
        states = torch.cat([queries, embed_words(self.embeddings, qformer_input_ids)], dim=1)
        bias = sight_bias("bidirectional", self.queries, qformer_attention_mask)
        states = self.qformer(self.embeddings.layernorm(states), image_states.expand(batch, -1, -1), bias)
        out: Tensor = self.language_projection(states)
        return out


class InstructBlip:
    """The family `instructblip`: `vision`, `qformer`, then the graphs of the language model.

    The question is the instruction, as it is; both tokenizers read it.
    """

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        architecture(source.path, HEADS)
        qformer = assets.tokenizer_bytes(source.path / QFORMER_FOLDER)
        model = load_pretrained(InstructBlipForConditionalGeneration, source.path)
        text, generation = language.language_text(model, source.path)
        return Loaded(
            model=model,
            task="visual-question-answering",
            pipeline=language.flow(model),
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(
                source.path, size=model.config.vision_config.image_size, tokens=language.queries_of(model)
            ),
            text=text,
            texts={QFORMER: language.qformer_text(qformer, model.config.qformer_config)},
            generation=generation,
        )

    def plans(self, loaded: Loaded) -> Plans:
        model = loaded.model
        return {
            "vision": lambda: vision_plan(model.vision_model),
            "qformer": lambda: _qformer_plan(model),
            **language.language_plans(model),
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        config = loaded.model.config
        size = config.vision_config.image_size
        ids = language.random_ids(config.text_config.vocab_size, (7, 4), never=config.image_token_id)
        read = language.random_ids(config.qformer_config.vocab_size, (6, 3))
        yield from _cases(loaded, random_pixels(2, height=size, width=size), (ids, read), "random")
        language_tokenizer, tokenizer = open_tokenizer(loaded.required_text), open_tokenizer(loaded.texts[QFORMER])
        for rgb, questions in questions_by_picture()[:2]:
            pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
            asked = [language_tokenizer.question(question).ids for question in questions]
            yield from _cases(loaded, pixels, (asked, [tokenizer.question(each).ids for each in questions]), "real")

    @torch.no_grad()
    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        tokenizer = open_tokenizer(loaded.texts[QFORMER])

        def generate(asked: Asked) -> Tensor:
            read = torch.tensor([tokenizer.question(asked.question).ids])
            return language.generate(loaded, asked.prepared, asked.ids, qformer_input_ids=read)

        return asked_answers(loaded, generate)


def _qformer_plan(model: InstructBlipForConditionalGeneration) -> GraphPlan:
    ids, axes = torch.ones(2, WORDS, dtype=torch.int64), {0: "batch", 1: "words"}
    return GraphPlan(
        name="qformer",
        module=Queries(model),
        args=(random_states(model.vision_model, 1), ids, torch.ones_like(ids)),
        dynamic_shapes=(None, axes, axes),
        input_names=["image_states", "qformer_input_ids", "qformer_attention_mask"],
        output_names=["image_embeds"],
        free_axes={"image_states": {0: "image"}},
    )


def _cases(
    loaded: Loaded,
    pixels: Tensor,
    questions: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    samples: Samples,
) -> Iterator[Case]:
    """`questions` are the ids that the language model reads, and those that the Q-Former reads."""
    model = loaded.model
    ids, mask = language.padded(questions[1], pad=loaded.texts[QFORMER].spec.pad_token_id)
    every = pixels.expand(len(ids), -1, -1, -1)  # the eager model takes a picture a question
    found = model.get_image_features(every, qformer_input_ids=ids, qformer_attention_mask=mask)
    states, embeds = found.vision_outputs.last_hidden_state[: len(pixels)], found.pooler_output
    read = {"qformer_input_ids": ids, "qformer_attention_mask": mask}
    given = (
        ("vision", {"pixel_values": pixels}, {"image_states": states}),
        ("qformer", {"image_states": states, **read}, {"image_embeds": embeds}),
    )
    for graph, inputs, expected in given:
        yield Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))
    yield from language.language_cases(model, embeds, questions[0], samples)
