"""LLaVA-1.5: a vision tower, a projector and a decoder-only language model.

Sources: Visual Instruction Tuning (NeurIPS 2023), Improved Baselines with Visual Instruction Tuning (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from edgevqa.export import assets
from edgevqa.export.answers import generated_answers
from edgevqa.export.components.causal_cases import decoder_cases, make_prompt
from edgevqa.export.components.llama import LlamaDecoder, max_context
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.prompts import prompt_template
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import prepare

PROMPT = "USER: IMAGE\n{question} ASSISTANT:"
MAX_QUESTION_TOKENS = 128


class VisionTower(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_states` (image, tokens, vision): the layers that LLaVA selects."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.layers = model.config.vision_feature_layer
        self.drops_first = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        layers = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        picked = [states[layer][:, 1:] if self.drops_first else states[layer] for layer in layers]
        return picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)


class Llava:
    """The family `llava`: `vision`, `projector`, `language_decoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(LlavaForConditionalGeneration, source.path)
        size = model.config.vision_config.image_size
        return load_llava(source, model, fixed_image_spec(source.path, size=size, tokens=image_tokens(model)))

    def plans(self, loaded: Loaded) -> Plans:
        inner = loaded.model.model
        return {
            "vision": lambda: vision_plan(inner),
            "projector": lambda: projector_plan(inner),
            "language_decoder": LlamaDecoder(inner.language_model, loaded.model.lm_head).plan,
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size = loaded.model.config.vision_config.image_size
        yield from _cases(loaded, random_pixels(2, height=size, width=size), "random")
        rgb, _ = questions_by_picture()[0]
        pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
        yield from _cases(loaded, pixels.expand(2, -1, -1, -1), "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return generated_answers(loaded)


def load_llava(source: Source, model: Any, image: ImageSpec) -> Loaded:
    """Everything beside the graphs of a LLaVA: its prompt, tokenizer and how answers end."""
    config = model.config
    tokenizer = assets.tokenizer_bytes(source.path)
    generation = generation_spec(model, max_context=max_context(config.text_config))
    image_token = assets.token_of(tokenizer, config.image_token_index)
    spec = assets.text_spec(
        tokenizer,
        cleaning="none",
        max_tokens=MAX_QUESTION_TOKENS,
        pad_token_id=generation.pad_token_id,
        eos_token_id=generation.eos_token_id,
        vocab_size=config.text_config.vocab_size,
        template=prompt_template(source.path, default=PROMPT.replace("IMAGE", image_token)),
        image_token_id=config.image_token_index,
    )
    return Loaded(
        model=model,
        task="visual-question-answering",
        pipeline="decoder_only",
        source=source_spec(source, model),
        model_info=model_info(model),
        image=image,
        text=Tokenized(data=tokenizer, spec=spec),
        generation=generation,
    )


def image_tokens(model: Any) -> int:
    """Embeddings of a picture: patches, and the class token where it is not dropped."""
    vision = model.config.vision_config
    first = 0 if model.config.vision_feature_select_strategy == "default" else 1
    return int(vision.image_size // vision.patch_size) ** 2 + first


def vision_plan(inner: Any) -> GraphPlan:
    """The graph `vision` of a LLaVA."""
    size = inner.config.vision_config.image_size
    return GraphPlan(
        name="vision",
        module=VisionTower(inner),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=["image_states"],
    )


def projector_plan(inner: Any) -> GraphPlan:
    """The graph `projector` of a LLaVA."""
    linear = inner.multi_modal_projector.linear_1
    vision = inner.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    return GraphPlan(
        name="projector",
        module=inner.multi_modal_projector,
        args=(torch.randn(2, tokens, linear.in_features),),
        dynamic_shapes=({0: "image"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
    )


def _cases(loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
    model = loaded.model
    states, embeds = (
        selected_states(model, pixels),
        torch.stack(list(model.model.get_image_features(pixels).pooler_output)),
    )
    yield case("vision", samples, {"pixel_values": pixels}, {"image_states": states})
    yield case("projector", samples, {"image_states": states}, {"image_embeds": embeds})
    yield from language_cases(model, embeds, samples)


def case(graph: str, samples: Samples, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> Case:
    """A case of tensors."""
    return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))


def selected_states(model: Any, pixels: Tensor) -> Tensor:
    """The vision tower's states that LLaVA selects, (image, tokens, vision)."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    states = torch.cat([hidden[each] for each in ([layer] if isinstance(layer, int) else layer)], dim=-1)
    return states[:, 1:] if model.config.vision_feature_select_strategy == "default" else states


def language_cases(model: Any, embeds: Tensor, samples: Samples) -> Iterator[Case]:
    """Cases of `language_decoder` for two prompts, one of them padded, with a picture (2, slots, hidden) in each."""
    token, slots = model.config.image_token_index, embeds.shape[1]
    ids = torch.randint(3, model.config.text_config.vocab_size, (2, slots + 7))
    ids[ids == token] = 3
    mask = torch.ones_like(ids)
    ids[0, 2 : 2 + slots] = ids[1, 4 : 4 + slots] = token
    mask[1, :2] = 0
    prompt = make_prompt(ids, mask, embeds, token)
    yield from decoder_cases(lambda given: model(**given), model.get_input_embeddings(), prompt, samples)
