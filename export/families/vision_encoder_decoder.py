"""A vision transformer and GPT-2 with cross-attention, for captions.

Sources: An Image is Worth 16x16 Words (ICLR 2021); Language Models are Unsupervised Multitask Learners (2019);
`VisionEncoderDecoderModel` of transformers joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from edgevqa.export import assets
from edgevqa.export.answers import greedy
from edgevqa.export.components.causal import KeyValue, layer_names
from edgevqa.export.components.cross import CrossShape, decoder_plan
from edgevqa.export.components.cross_cases import Encoded, captions, language_cases
from edgevqa.export.components.gpt2 import Gpt2Decoder, cross_pairs
from edgevqa.export.components.vit import vit_states
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import questions_by_picture, random_pixels
from edgevqa.export.sources import Source, read_json
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples, Tokenized
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import GenerationSpec
from edgevqa.runtime.preprocessing import prepare

PROMPT_TOKENS = 64  # of a caption's prompt
USUAL_LENGTH = 20  # tokens of a caption where the checkpoint names none
KNOWN = {"encoder": ("vit", "deit"), "decoder": ("gpt2",)}


class Vision(nn.Module):
    """`pixel_values` (image, 3, height, width) to the decoder's cross keys and values of every layer.

    They depend on the picture alone, and are kept for further prompts.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.enc_to_dec_proj = getattr(model, "enc_to_dec_proj", None)

    def forward(self, pixel_values: Tensor) -> list[KeyValue]:
        states = vit_states(self.encoder, pixel_values)
        return cross_pairs(self.decoder, states if self.enc_to_dec_proj is None else self.enc_to_dec_proj(states))


class VisionEncoderDecoder:
    """The family `vision_encoder_decoder`: `vision`, `language_decoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        _check(source.path)
        # the pooler is no part of what the decoder reads, and many checkpoints lack it
        model = load_pretrained(VisionEncoderDecoderModel, source.path, ignored=("encoder.pooler.",))
        generation = _generation(model)
        return Loaded(
            model=model,
            task="image-captioning",
            pipeline="encoder_decoder",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=fixed_image_spec(source.path, size=_image_size(model)),
            text=_tokenized(source.path, model, generation),
            generation=generation,
        )

    def plans(self, loaded: Loaded) -> Plans:
        model, decoder = loaded.model, loaded.model.decoder
        config = decoder.config
        heads, keys = config.n_head, _tokens(model)
        shape = CrossShape(layers=config.n_layer, heads=heads, head=config.n_embd // heads, keys=keys)
        return {
            "vision": lambda: _vision_plan(model),
            "language_decoder": lambda: decoder_plan(Gpt2Decoder(decoder), shape),
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        image = loaded.required_image
        yield from _cases(loaded.model, random_pixels(3, height=image.height, width=image.width), "random")
        for rgb, _ in questions_by_picture()[:2]:
            yield from _cases(loaded.model, torch.from_numpy(prepare(rgb, image).inputs["pixel_values"]), "real")

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return captions(loaded, _caption)


def _check(folder: Path) -> None:
    """Raises `CheckpointError` for an encoder or decoder that this family does not export."""
    config = read_json(folder / "config.json", what="it names encoder and decoder")
    for part, known in KNOWN.items():
        given = config.get(part)
        kind = given.get("model_type") if isinstance(given, dict) else None
        if kind not in known:
            raise CheckpointError(
                f"{folder} has the {part} '{kind}'; the family 'vision_encoder_decoder' exports {', '.join(known)}."
            )


def _generation(model: Any) -> GenerationSpec:
    longest = model.generation_config.max_length
    most = USUAL_LENGTH if longest is None else longest - 1  # the start token counts in it
    return generation_spec(model, max_context=model.decoder.config.n_positions, most=most)


def _tokenized(folder: Path, model: Any, generation: GenerationSpec) -> Tokenized:
    """The decoder's tokenizer; what it reads is a caption's prompt, which may be empty and has no end token."""
    data, config = assets.tokenizer_bytes(folder), model.decoder.config
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=min(PROMPT_TOKENS, config.n_positions // 2),
        pad_token_id=generation.pad_token_id,
        eos_token_id=None,
        vocab_size=config.vocab_size,
        special_tokens=False,
        required=False,
        tidied=assets.tidies_answers(folder, data),
    )
    return Tokenized(data=data, spec=spec)


def _image_size(model: Any) -> tuple[int, int]:
    size = model.config.encoder.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _tokens(model: Any) -> int:
    """States that the encoder gives of a picture: special tokens, then patches."""
    return int(model.encoder.embeddings.position_embeddings.shape[1])


def _vision_plan(model: Any) -> GraphPlan:
    height, width = _image_size(model)
    return GraphPlan(
        name="vision",
        module=Vision(model),
        args=(random_pixels(2, height=height, width=width),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=layer_names("cross", model.decoder.config.n_layer),
    )


def _cases(model: Any, pixels: Tensor, samples: Samples) -> Iterator[Case]:
    embeds = model.encoder(pixels).last_hidden_state
    if hasattr(model, "enc_to_dec_proj"):
        embeds = model.enc_to_dec_proj(embeds)
    yield from language_cases(Encoded(decoder=model.decoder, states=embeds), {"pixel_values": pixels}, samples)


def _caption(model: Any, pixels: Tensor, ids: Sequence[int]) -> Tensor:
    """What the eager model generates after the start token and a prompt."""
    start = model.generation_config.decoder_start_token_id
    begin = {"decoder_input_ids": torch.tensor([[start, *ids]])} if ids else {}
    return greedy(model, pixel_values=pixels, **begin)[:, 1 + len(ids) :]
