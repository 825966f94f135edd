"""The vision tower of BLIP-2 and InstructBLIP: EVA's ViT-g, or CLIP's ViT-L in the same form.

Sources: BLIP-2 (Li et al. 2023), EVA (Fang et al. 2023), as transformers computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import attend, merge_heads, split_heads
from edgevqa.export.samples import random_pixels
from edgevqa.export.spec import GraphPlan


class VisionLayer(nn.Module):
    """One layer of transformers' tower; submodules keep the names they have in the model, so that initializers do too."""

    self_attn: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.scale = int(attention.num_heads), float(attention.scale)
        self.self_attn = nn.Module()
        self.self_attn.qkv, self.self_attn.projection = attention.qkv, attention.projection
        self.layer_norm1, self.layer_norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp

    def forward(self, states: Tensor) -> Tensor:
        """(image, tokens, vision) to the same shape."""
        query, key, value = self.self_attn.qkv(self.layer_norm1(states)).chunk(3, dim=-1)
        query, key, value = (split_heads(each, self.heads) for each in (query * self.scale, key, value))
        states = states + self.self_attn.projection(merge_heads(attend(query, key, value)))
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class VisionEmbeddings(nn.Module):
    """`pixel_values` (image, 3, height, width) to the class token and the patches, (image, tokens, vision)."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.patch_embedding = embeddings.patch_embedding
        self.class_embedding = embeddings.class_embedding
        self.position_embedding = embeddings.position_embedding

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], -1, -1)
        out: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding
        return out


class VisionTower(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_states` (image, tokens, vision), normalised.

    `vision_model` is transformers' tower. A fused tower may replace single `layers`, which keep their own numbers.
    """

    vision_model: Any

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = nn.Module()
        self.vision_model.embeddings = VisionEmbeddings(vision_model.embeddings)
        self.vision_model.encoder = nn.Module()
        layers = {str(number): VisionLayer(layer) for number, layer in enumerate(vision_model.encoder.layers)}
        self.vision_model.encoder.layers = nn.ModuleDict(layers)
        self.vision_model.post_layernorm = vision_model.post_layernorm

    @property
    def layers(self) -> nn.ModuleDict:
        found: nn.ModuleDict = self.vision_model.encoder.layers
        return found

    def forward(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.vision_model.embeddings(pixel_values)
        for layer in self.layers.values():
            states = layer(states)
        out: Tensor = self.vision_model.post_layernorm(states)
        return out


def vision_plan(vision_model: Any) -> GraphPlan:
    """The graph `vision`."""
    size = int(vision_model.config.image_size)
    return GraphPlan(
        name="vision",
        module=VisionTower(vision_model),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=["image_states"],
    )


def random_states(vision_model: Any, images: int) -> Tensor:
    """`image_states` (images, tokens, vision) to trace with."""
    return torch.randn(images, vision_model.embeddings.num_positions, vision_model.config.hidden_size)
