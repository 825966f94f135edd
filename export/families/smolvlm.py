"""SmolVLM and Idefics3: pictures in tiles, embeddings gathered by pixel shuffle, and a small Llama-like decoder.

Sources: Building and better understanding vision-language models (Idefics3, 2024), SmolVLM: Redefining small and efficient
multimodal models (2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration

from edgevqa.export import assets
from edgevqa.export.answers import expand, generated_answers, greedy
from edgevqa.export.components.causal_cases import decoder_cases, make_prompt
from edgevqa.export.components.llama import LlamaDecoder, max_context
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import RESAMPLES, load_image_processor, values
from edgevqa.export.prompts import picture_separator, prompt_template
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared, prepare
from edgevqa.runtime.preprocessing.idefics3 import LONGEST_SIDE, TileSettings, TileTokens, expansion

ARCHITECTURES = {
    "SmolVLMForConditionalGeneration": SmolVLMForConditionalGeneration,
    "Idefics3ForConditionalGeneration": Idefics3ForConditionalGeneration,
}
PROMPT = "<|im_start|>User:IMAGE{question}<end_of_utterance>\nAssistant:"
MAX_QUESTION_TOKENS = 128
USUAL_SHAPE = (3, 4)  # rows and columns of tiles, as shares of the most: a picture of 4 : 3


class TileVision(nn.Module):
    """`pixel_values` (tiles, 3, side, side) to `image_states` (tiles, tokens, vision)."""

    position_ids: Tensor

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.post_layernorm = vision.embeddings, vision.encoder, vision.post_layernorm
        self.register_buffer("position_ids", position_ids(vision.embeddings), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        states = patches + self.embeddings.position_embedding(self.position_ids)
        states = self.encoder(inputs_embeds=states, attention_mask=None).last_hidden_state
        normed: Tensor = self.post_layernorm(states)
        return normed


class TileConnector(nn.Module):
    """`image_states` (tiles, tokens, vision) to `image_embeds` (1, slots, text), one tile after the other."""

    def __init__(self, connector: nn.Module) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, image_states: Tensor) -> Tensor:
        embeds: Tensor = self.connector(image_states)
        return embeds.flatten(0, 1)[None]


class SmolVLM:
    """The family `smolvlm`: `vision`, `projector`, `language_decoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(ARCHITECTURES[architecture(source.path, ARCHITECTURES)], source.path)
        text, image_token = model.config.text_config, model.config.image_token_id
        tokenizer = assets.tokenizer_bytes(source.path)
        generation = generation_spec(model, max_context=max_context(text))
        picture = assets.token_of(tokenizer, image_token)
        prompts = PROMPT.replace("IMAGE", picture), PROMPT.replace("IMAGE", picture * 2)
        separator = picture_separator(source.path, tokenizer, image_token_id=image_token, defaults=prompts)
        spec = assets.text_spec(
            tokenizer,
            cleaning="none",
            max_tokens=MAX_QUESTION_TOKENS,
            pad_token_id=generation.pad_token_id,
            eos_token_id=generation.eos_token_id,
            vocab_size=text.vocab_size,
            template=prompt_template(source.path, default=prompts[0]),
            image_token_id=image_token,
        )
        return Loaded(
            model=model,
            task="visual-question-answering",
            pipeline="decoder_only",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=msgspec.structs.replace(image_spec(source.path, model, tokenizer), separator=separator),
            text=Tokenized(data=tokenizer, spec=spec),
            generation=generation,
        )

    def plans(self, loaded: Loaded) -> Plans:
        inner = loaded.model.model
        return {
            "vision": lambda: vision_plan(inner),
            "projector": lambda: projector_plan(inner),
            "language_decoder": LlamaDecoder(inner.text_model, loaded.model.lm_head).plan,
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        side = loaded.model.config.vision_config.image_size
        yield from _cases(loaded, random_pixels(3, height=side, width=side), "random")
        for rgb, _ in questions_by_picture()[:2]:
            yield from _cases(loaded, _pixels(prepare(rgb, loaded.required_image))[-4:], "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return generated_answers(loaded, generate)


def image_spec(folder: Path, model: Any, tokenizer: bytes) -> ImageSpec:
    """The folder's processor. Raises `CheckpointError` where its tiles are not what the model takes."""
    processor, side = load_image_processor(folder), model.config.vision_config.image_size
    longest, tile = (dict(each).get("longest_edge") for each in (processor.size, processor.max_image_size))
    if not processor.do_resize or not longest or not tile or tile != side:
        raise CheckpointError(
            f"The image processor of {folder} cuts tiles of {tile} pixels from pictures resized to {longest}; the model takes "
            f"tiles of {side}, of pictures resized by their longest edge."
        )
    rows = math.ceil(min(longest, LONGEST_SIDE) / tile) if processor.do_image_splitting else 0
    tokens = tile_tokens(folder, tokenizer, model, rows)
    settings = TileSettings(tile=tile, longest_side=longest, split=processor.do_image_splitting, tokens=tokens)
    usual = math.ceil(rows * USUAL_SHAPE[0] / USUAL_SHAPE[1]) * rows + 1
    return ImageSpec(
        height=side,
        width=side,
        resize=None,
        crop=None,
        resample=RESAMPLES[int(processor.resample)],
        processor="idefics3",
        settings=msgspec.to_builtins(settings),
        tokens=len(expansion(rows, rows, tokens)),
        axes={"tiles": (1, usual, settings.most_tiles)},
        **values(processor),
    )


def tile_tokens(folder: Path, tokenizer: bytes, model: Any, rows: int) -> TileTokens:
    """The ids that stand for a picture of at most `rows` rows and as many columns of tiles, as the tokenizer reads them."""
    names = assets.load_tokenizer(folder)
    opening = getattr(names, "fake_image_token", None) or "<fake_token_around_image>"
    picture = getattr(names, "image_token", None) or "<image>"
    whole = getattr(names, "global_image_token", None) or "<global-img>"
    read = Tokenizer.from_str(tokenizer.decode("utf-8"))
    read.no_truncation()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(read.encode(text, add_special_tokens=False).ids)

    first, last = ids(opening), ids(picture)
    if last != (model.config.image_token_id,):
        raise CheckpointError(
            f"The tokenizer of {folder} reads {picture!r} as {list(last)}; the model's image token is "
            f"{model.config.image_token_id}."
        )

    def named(name: str) -> tuple[int, ...]:  # between the tokens where it stands: some take blanks beside them away
        return ids(opening + name + picture)[len(first) : -1]

    def ended(blank: str) -> tuple[int, ...]:
        return ids(picture + blank + opening)[1 : -len(first)]

    return TileTokens(
        picture=model.config.image_token_id,
        places=places_of(model.config),
        opening=first,
        whole=named(whole),
        tiles=tuple(tuple(named(f"<row_{row + 1}_col_{column + 1}>") for column in range(rows)) for row in range(rows)),
        row_end=ended("\n"),
        grid_end=ended("\n\n"),
    )


def places_of(config: Any) -> int:
    """Embeddings of a tile."""
    patches: int = config.vision_config.image_size // config.vision_config.patch_size
    return int(patches**2 // config.scale_factor**2)


def position_ids(embeddings: Any) -> Tensor:
    """The rows of the table of positions (1, tokens) that the eager model takes for a whole tile."""
    found: list[Tensor] = []
    side, patches = embeddings.image_size, embeddings.num_patches_per_side

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])

    hook = embeddings.position_embedding.register_forward_pre_hook(keep)
    with torch.no_grad():
        embeddings(torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    return found[0]


def vision_plan(inner: Any) -> GraphPlan:
    """The graph `vision`."""
    side = inner.config.vision_config.image_size
    return GraphPlan(
        name="vision",
        module=TileVision(inner.vision_model),
        args=(random_pixels(3, height=side, width=side),),
        dynamic_shapes=({0: "tiles"},),
        input_names=["pixel_values"],
        output_names=["image_states"],
    )


def projector_plan(inner: Any) -> GraphPlan:
    """The graph `projector`."""
    vision, places = inner.config.vision_config, places_of(inner.config)
    return GraphPlan(
        name="projector",
        module=TileConnector(inner.connector),
        args=(torch.randn(3, (vision.image_size // vision.patch_size) ** 2, vision.hidden_size),),
        dynamic_shapes=({0: "tiles"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
        relabel={f"{places}*tiles": "slots", f"tiles*{places}": "slots"},
    )


def generate(loaded: Loaded, prepared: Prepared, ids: Sequence[int]) -> Tensor:
    """The eager model's answer (1, length)."""
    prompt = expand(ids, prepared, image_token=loaded.model.config.image_token_id, slots=0)
    pixels = _pixels(prepared)[None]  # (1, tiles, 3, side, side)
    mask = torch.ones_like(prompt)
    found = greedy(loaded.model, input_ids=prompt, attention_mask=mask, pixel_values=pixels)
    return found[:, prompt.shape[1] :]


def _pixels(prepared: Prepared) -> Tensor:
    return torch.from_numpy(prepared.inputs["pixel_values"])


def _cases(loaded: Loaded, pixels: Tensor, samples: Samples) -> Iterator[Case]:
    model, token = loaded.model, loaded.model.config.image_token_id
    found = model.model.get_image_features(pixels[None])
    states, embeds = found.last_hidden_state, torch.cat(list(found.pooler_output))[None]
    for graph, given, expected in (
        ("vision", {"pixel_values": pixels}, {"image_states": states}),
        ("projector", {"image_states": states}, {"image_embeds": embeds}),
    ):
        yield Case(graph=graph, samples=samples, inputs=arrays(given), expected=arrays(expected))
    slots, half = embeds.shape[1], embeds.shape[1] // 2
    ids = torch.randint(3, token, (2, slots + 9))  # two rows of text around and between the halves of a picture
    for row, first in enumerate((2, 4)):
        ids[row, first : first + half] = ids[row, first + half + 1 : first + slots + 1] = token
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    prompt = make_prompt(ids, mask, torch.cat([embeds, embeds.flip(1)]), token)
    yield from decoder_cases(lambda each: model(**each), model.get_input_embeddings(), prompt, samples)
