"""BLIP: answers, captions, and matching of picture and text, each a checkpoint of its own.

Source: BLIP: Bootstrapping Language-Image Pre-training (ICML 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from edgevqa.export.answers import generated_answers, greedy
from edgevqa.export.components.blip import BlipDecoder, CaptionVision, QuestionEncoder
from edgevqa.export.components.blip_parts import image_shape, image_size, questions, tokenized, vision_case, vision_plan
from edgevqa.export.components.causal import layer_names
from edgevqa.export.components.cross import CrossShape, decoder_plan, question_encoder_plan
from edgevqa.export.components.cross_cases import Encoded, captions, language_cases
from edgevqa.export.families.blip_retrieval import Retrieval
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import questions_by_picture, random_pixels
from edgevqa.export.sources import Source, read_json
from edgevqa.export.spec import AnswerCase, Case, Loaded, Plans, Samples
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import GenerationSpec
from edgevqa.runtime.preprocessing import Prepared, prepare

USUAL_LENGTH = 20  # tokens of an answer or caption where the checkpoint names none


class Head(Protocol):
    """One kind of BLIP checkpoint."""

    def load(self, source: Source) -> Loaded: ...

    def plans(self, model: Any) -> Plans: ...

    def cases(self, loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
        """Cases of every graph, for pictures (batch, 3, height, width)."""
        ...

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]: ...


class Blip:
    """The family `blip`. The checkpoint's architecture says which of its heads it has."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        return HEADS[_architecture(source.path)].load(source)

    def plans(self, loaded: Loaded) -> Plans:
        return _head(loaded).plans(loaded.model)

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        height, width = loaded.required_image.height, loaded.required_image.width
        yield from _head(loaded).cases(loaded, random_pixels(3, height=height, width=width), "random")
        pictures = [prepare(rgb, loaded.required_image) for rgb, _ in questions_by_picture()[:2]]
        pixels = torch.cat([torch.from_numpy(picture.inputs["pixel_values"]) for picture in pictures])
        yield from _head(loaded).cases(loaded, pixels, "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return _head(loaded).answer_cases(loaded)


class Answering:
    """BlipForQuestionAnswering: the text encoder reads picture and question, the decoder what it gives."""

    def load(self, source: Source) -> Loaded:
        return _loaded(source, BlipForQuestionAnswering, "visual-question-answering")

    def plans(self, model: Any) -> Plans:
        shape = _shape(model, keys=None)
        text = model.config.text_config
        return {
            "vision": lambda: vision_plan(model, "image_embeds"),
            "language_encoder": lambda: question_encoder_plan(
                QuestionEncoder(model), shape, image=image_shape(model), vocab_size=text.vocab_size
            ),
            "language_decoder": lambda: decoder_plan(BlipDecoder(model.text_decoder), shape),
        }

    def cases(self, loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
        model = loaded.model
        embeds = model.vision_model(pixels).last_hidden_state
        yield vision_case(pixels, {"image_embeds": embeds}, samples)
        ids, mask = questions(loaded, len(embeds), samples)
        states = model.text_encoder(ids, mask, encoder_hidden_states=embeds).last_hidden_state
        inputs = {"image_embeds": embeds, "input_ids": ids, "attention_mask": mask}
        yield from language_cases(Encoded(decoder=model.text_decoder, states=states, mask=mask), inputs, samples)

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return generated_answers(loaded, _answer)


class Captioning:
    """BlipForConditionalGeneration: the decoder attends to the picture, and may be given how the caption begins.

    What it attends to depends on the picture alone, so the graph `vision` gives its keys and values: one graph less, and kept
    for further prompts.
    """

    def load(self, source: Source) -> Loaded:
        return _loaded(source, BlipForConditionalGeneration, "image-captioning")

    def plans(self, model: Any) -> Plans:
        shape = _shape(model, keys=image_shape(model)[0])
        cross = layer_names("cross", shape.layers)
        return {
            "vision": lambda: vision_plan(model, *cross, module=CaptionVision(model)),
            "language_decoder": lambda: decoder_plan(BlipDecoder(model.text_decoder), shape),
        }

    def cases(self, loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
        encoded = Encoded(decoder=loaded.model.text_decoder, states=loaded.model.vision_model(pixels).last_hidden_state)
        yield from language_cases(encoded, {"pixel_values": pixels}, samples)

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return captions(loaded, _caption)


HEADS: dict[str, Head] = {
    "BlipForQuestionAnswering": Answering(),
    "BlipForConditionalGeneration": Captioning(),
    "BlipForImageTextRetrieval": Retrieval(),
}


def _architecture(folder: Path) -> str:
    found = read_json(folder / "config.json", what="it names the architecture").get("architectures") or ["none"]
    name = str(found[0] if isinstance(found, list) else found)
    if name not in HEADS:
        raise CheckpointError(f"{folder} holds a {name}; the family 'blip' exports {', '.join(HEADS)}.")
    return name


def _head(loaded: Loaded) -> Head:
    return HEADS[type(loaded.model).__name__]


def _loaded(source: Source, model_class: Any, task: str) -> Loaded:
    """A checkpoint that generates text."""
    model = load_pretrained(model_class, source.path)
    generation = _generation(model)
    return Loaded(
        model=model,
        task=task,
        pipeline="encoder_decoder",
        source=source_spec(source, model),
        model_info=model_info(model),
        image=fixed_image_spec(source.path, size=image_size(model)),
        text=tokenized(source.path, model, prompts=not hasattr(model, "text_encoder")),
        generation=generation,
    )


def _generation(model: Any) -> GenerationSpec:
    """What `generate` of BLIP does: it decodes with the text model's settings, and an answer ends with the separator."""
    decoder, text = model.text_decoder, model.config.text_config
    longest = decoder.generation_config.max_length
    spec = generation_spec(
        decoder,
        start=text.bos_token_id,
        max_context=text.max_position_embeddings,
        most=USUAL_LENGTH if longest is None else longest - 1,  # the start token counts in it
    )
    return msgspec.structs.replace(
        spec, eos_token_id=text.sep_token_id, more_eos_token_ids=[], pad_token_id=text.pad_token_id
    )


def _shape(model: Any, *, keys: int | None) -> CrossShape:
    text = model.config.text_config
    heads = text.num_attention_heads
    return CrossShape(layers=text.num_hidden_layers, heads=heads, head=text.hidden_size // heads, keys=keys)


def _answer(loaded: Loaded, prepared: Prepared, ids: Sequence[int]) -> Tensor:
    """What the eager model generates for a question after its start token."""
    question = torch.tensor([ids])
    pixels = torch.from_numpy(prepared.inputs["pixel_values"])
    found = greedy(loaded.model, input_ids=question, pixel_values=pixels, attention_mask=torch.ones_like(question))
    return found[:, 1:]


def _caption(model: Any, pixels: Tensor, ids: Sequence[int]) -> Tensor:
    """What the eager model generates after the start token and a prompt, which comes between two special tokens."""
    text = model.config.text_config
    prompt = torch.tensor([[text.bos_token_id, *ids, text.sep_token_id]]) if ids else None
    return greedy(model, pixel_values=pixels, input_ids=prompt)[:, 1 + len(ids) :]
