"""The vision graphs of a QA-ViT: trunk, fusion and projector, with gates folded and no dead queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import attend, key_bias, merge_heads, split_heads
from edgevqa.models.qavit.model import Projector
from edgevqa.models.qavit.vision import VisionAttention, VisionLayer, VisionTower


@torch.no_grad()
def folded_out_proj(attention: VisionAttention) -> nn.Linear:
    """`out_proj(x) + tanh(g) question_out_proj(x)` as one Linear: weights and biases add up."""
    gate = torch.tanh(attention.question_gate)
    folded = nn.Linear(attention.out_proj.in_features, attention.out_proj.out_features, device="meta")
    folded.weight = nn.Parameter(attention.out_proj.weight + gate * attention.question_out_proj.weight)
    folded.bias = nn.Parameter(attention.out_proj.bias + gate * attention.question_out_proj.bias)
    return folded


class GraphLayer(nn.Module):
    """One vision layer; submodules keep the names they have in the model, so that initializers do too."""

    self_attn: Any

    def __init__(self, layer: VisionLayer) -> None:
        super().__init__()
        fused = layer.question_reducer is not None
        attention = layer.self_attn
        self.heads = attention.heads
        self.scale = (attention.q_proj.out_features // attention.heads) ** -0.5
        self.self_attn = nn.Module()
        self.self_attn.q_proj, self.self_attn.k_proj = attention.q_proj, attention.k_proj
        self.self_attn.v_proj = attention.v_proj
        self.self_attn.out_proj = folded_out_proj(attention) if fused else attention.out_proj
        self.layer_norm1, self.layer_norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp
        self.question_reducer = layer.question_reducer

    def forward(self, states: Tensor, question_states: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        normed, attention = self.layer_norm1(states), self.self_attn
        query = split_heads(attention.q_proj(normed) * self.scale, self.heads)
        key, value = (split_heads(project(normed), self.heads) for project in (attention.k_proj, attention.v_proj))
        if self.question_reducer is not None and question_states is not None:
            # the two parts are projected apart: each may have its own INT8 scale, and the question's could be kept
            question = self.question_reducer(question_states)  # (batch, words, vision)
            key = torch.cat([split_heads(attention.k_proj(question), self.heads), key], dim=2)
            value = torch.cat([split_heads(attention.v_proj(question), self.heads), value], dim=2)
            mixed = attend(query, key, value, bias)
        else:
            mixed = attend(query, key, value)
        states = states + attention.out_proj(merge_heads(mixed))
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class _Layers(nn.Module):
    """A range of a tower's layers under their own numbers."""

    embeddings: nn.Module
    pre_layrnorm: nn.Module

    def __init__(self, tower: VisionTower, start: int, stop: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): GraphLayer(tower.layers[i]) for i in range(start, stop)})


class VisionTrunk(nn.Module):
    """`pixel_values` (image, 3, height, width) to `trunk_states` (image, tokens, vision)."""

    vision: Any

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.vision = _Layers(tower, 0, tower.trunk_layers)
        self.vision.embeddings, self.vision.pre_layrnorm = tower.embeddings, tower.pre_layrnorm

    def forward(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.vision.pre_layrnorm(self.vision.embeddings(pixel_values))
        for layer in self.vision.layers.values():
            states = layer(states)
        return states


class VisionFusion(nn.Module):
    """`trunk_states` (1 or batch, tokens, vision) and the question to `image_states` (batch, tokens, vision)."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.vision = _Layers(tower, tower.trunk_layers, len(tower.layers))

    def forward(self, trunk_states: Tensor, question_states: Tensor, attention_mask: Tensor) -> Tensor:
        batch = question_states.shape[0]
        states = trunk_states.expand(batch, -1, -1)
        seen = torch.ones_like(states[:, :, 0])  # (batch, tokens)
        bias = key_bias(torch.cat([attention_mask.to(seen.dtype), seen], dim=1))
        for layer in self.vision.layers.values():
            states = layer(states, question_states, bias)
        return states


class ImageProjector(nn.Module):
    """`image_states` (batch, tokens, vision) to `image_embeds` (batch, tokens, text)."""

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, image_states: Tensor) -> Tensor:
        out: Tensor = self.projector(image_states)
        return out
