"""MAE: a ViT that encodes any part of a picture's patches, and a decoder that predicts the others.

Source: Masked Autoencoders Are Scalable Vision Learners (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from edgevqa.export.pretrained import architecture, load_pretrained, model_info, source_spec
from edgevqa.export.processors import fixed_image_spec
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Samples
from edgevqa.runtime.pipelines.features import (
    DECODER,
    ENCODER,
    FEATURES,
    KEEP,
    PREDICTED,
    RESTORE,
    STATES,
    PatchSpec,
    draw_mask,
    noise,
)
from edgevqa.runtime.preprocessing import prepare

ENCODING, RESTORING = "ViTMAEModel", "ViTMAEForPreTraining"
AXES = {"patches + 1": "states", "1 + patches": "states"}


class Encoder(nn.Module):
    """`pixel_values` (batch, 3, height, width) and `keep_index` (batch, patches) to `last_hidden_state` (batch, states, width).

    The eager model draws which patches it sees inside; here their numbers are given, as many as one likes. `states` are
    the class token's and one of each of them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, keep_index: Tensor) -> Tensor:
        embeddings = self.model.embeddings
        places = embeddings.position_embeddings
        patches = embeddings.patch_embeddings(pixel_values) + places[:, 1:]
        first = (embeddings.cls_token + places[:, :1]).expand(patches.shape[0], -1, -1)
        states = torch.cat([first, _rows(patches, keep_index)], dim=1)
        for layer in self.model.layers:
            states = layer(states)
        normed: Tensor = self.model.layernorm(states)
        return normed


class Decoder(nn.Module):
    """`last_hidden_state` (batch, states, width) and `restore_index` (batch, 1 + patches of the picture) to `patch_values`.

    `restore_index` gives the place in the states of the class token and of every patch; the place after the last is that
    of the learned token which stands for a patch left out. `patch_values` are (batch, patches, patch * patch * 3).
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, last_hidden_state: Tensor, restore_index: Tensor) -> Tensor:
        seen = self.decoder.decoder_embed(last_hidden_state)
        known = torch.cat([seen, self.decoder.mask_token.expand(seen.shape[0], -1, -1)], dim=1)
        states = _rows(known, restore_index) + self.decoder.decoder_pos_embed
        for layer in self.decoder.decoder_layers:
            states = layer(states)
        values: Tensor = self.decoder.decoder_pred(self.decoder.decoder_norm(states[:, 1:]))
        return values


class ViTMAE:
    """The family `vit_mae`: `encoder`, and `decoder` where the checkpoint has one."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        name = architecture(source.path, (RESTORING, ENCODING))
        model = load_pretrained(getattr(transformers, name), source.path)
        config = model.config
        settings = PatchSpec(
            patches=(config.image_size // config.patch_size) ** 2,
            patch=config.patch_size,
            mask_ratio=config.mask_ratio,
            normalized=config.norm_pix_loss,
        )
        image = fixed_image_spec(source.path, size=config.image_size)
        return Loaded(
            model=model,
            task="image-feature-extraction",
            pipeline="features",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=msgspec.structs.replace(image, settings=msgspec.to_builtins(settings), axes=_axes(settings.patches)),
            labels=[FEATURES],
        )

    def plans(self, loaded: Loaded) -> Plans:
        inner, decoder = _parts(loaded)
        plans = {ENCODER: lambda: _encoder_plan(inner, _patches(loaded))}
        return plans if decoder is None else {**plans, DECODER: lambda: _decoder_plan(decoder, _patches(loaded))}

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(0)
        size, patches = loaded.model.config.image_size, _patches(loaded).patches
        random = random_pixels(2, height=size, width=size)
        yield from _cases(loaded, random, torch.rand(2, patches, dtype=torch.float64), "random")
        for seed, (rgb, _) in enumerate(questions_by_picture()):
            pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
            yield from _cases(loaded, pixels, torch.from_numpy(noise(patches, seed))[None], "real")
            with _mask_ratio(loaded.model, 0.0):
                everything = torch.arange(patches, dtype=torch.float64)[None]
                yield next(_cases(loaded, pixels, everything, "real"))

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return [AnswerCase(image=rgb, question="", expected=FEATURES, tokens=(0,)) for rgb, _ in questions_by_picture()]


def _parts(loaded: Loaded) -> tuple[Any, Any]:
    """The encoder, and the decoder or None."""
    return getattr(loaded.model, "vit", loaded.model), getattr(loaded.model, "decoder", None)


def _patches(loaded: Loaded) -> PatchSpec:
    return msgspec.convert(loaded.required_image.settings, PatchSpec)


def _axes(most: int) -> dict[str, tuple[int, int, int]]:
    """At least one patch is seen; usually all are. The encoder's states are one more."""
    return {"patches": (1, most, most), "states": (2, 1 + most, 1 + most)}


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """Of states (batch, places, width) the rows that `index` (batch, wanted) names."""
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))


def _encoder_plan(model: Any, spec: PatchSpec) -> GraphPlan:
    size = model.config.image_size
    masks = [draw_mask(spec, 0.5, seed) for seed in range(2)]
    return GraphPlan(
        name=ENCODER,
        module=Encoder(model),
        args=(
            random_pixels(2, height=size, width=size),
            torch.from_numpy(np.stack([mask.keep for mask in masks])),
        ),
        dynamic_shapes=({0: "batch"}, {0: "batch", 1: "patches"}),
        input_names=["pixel_values", KEEP],
        output_names=[STATES],
        relabel=AXES,
    )


def _decoder_plan(decoder: Any, spec: PatchSpec) -> GraphPlan:
    masks = [draw_mask(spec, 0.5, seed) for seed in range(2)]
    states = torch.randn(2, 1 + len(masks[0].keep), decoder.decoder_embed.in_features)
    return GraphPlan(
        name=DECODER,
        module=Decoder(decoder),
        args=(states, torch.from_numpy(np.stack([mask.restore for mask in masks]))),
        dynamic_shapes=({0: "batch", 1: "states"}, {0: "batch"}),
        input_names=[STATES, RESTORE],
        output_names=[PREDICTED],
    )


def _cases(loaded: Loaded, pixels: Tensor, drawn: Tensor, samples: Samples) -> Iterator[Case]:
    """The eager model with the numbers that its patches draw, (batch, patches): the encoder, then the decoder."""
    model, (inner, decoder) = loaded.model, _parts(loaded)
    states = inner(pixels, noise=drawn).last_hidden_state
    order = drawn.argsort(dim=1)
    keep = order[:, : states.shape[1] - 1]
    yield Case(
        graph=ENCODER,
        samples=samples,
        inputs=arrays({"pixel_values": pixels, KEEP: keep}),
        expected=arrays({STATES: states}),
    )
    if decoder is None:
        return
    place = order.argsort(dim=1).clamp(max=keep.shape[1])  # those left out share the place after the last
    restore = torch.cat([torch.zeros_like(place[:, :1]), place + 1], dim=1)
    yield Case(
        graph=DECODER,
        samples=samples,
        inputs=arrays({STATES: states, RESTORE: restore}),
        expected=arrays({PREDICTED: model(pixels, noise=drawn).logits}),
    )


@contextmanager
def _mask_ratio(model: Any, ratio: float) -> Iterator[None]:
    """Let the eager model leave out another share of the patches, and restore its own."""
    before = model.config.mask_ratio
    model.config.mask_ratio = ratio
    try:
        yield
    finally:
        model.config.mask_ratio = before
