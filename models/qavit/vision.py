"""The vision transformer of QA-ViT: CLIP layers, some of which take the question as extra keys and values.

Source: Question Aware Vision Transformer for Multimodal Reasoning (CVPR 2024) and its published implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from edgevqa.models.qavit.config import QAViTConfig, VisionConfig


class VisionEmbeddings(nn.Module):
    """Patches by convolution, CLS in front, learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.tokens, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Self-attention whose keys and values may start with question tokens; only image tokens query."""

    def __init__(self, config: VisionConfig, fused: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        if fused:
            self.question_out_proj = nn.Linear(width, width)
            self.question_gate = nn.Parameter(torch.zeros(1))

    def split(self, states: Tensor) -> Tensor:
        split: Tensor = states.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)

    def forward(self, states: Tensor, question: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        keys_from = states if question is None else torch.cat([question, states], dim=1)
        query, key = self.split(self.q_proj(states)), self.split(self.k_proj(keys_from))
        value = self.split(self.v_proj(keys_from))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        if question is not None:
            out = out + self.question_out_proj(mixed) * torch.tanh(self.question_gate)
        return out


class VisionMLP(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(states)))
        return out


class VisionLayer(nn.Module):
    """A pre-norm CLIP layer; a fused one reduces question states to its own width first."""

    def __init__(self, config: QAViTConfig, fused: bool) -> None:
        super().__init__()
        vision, width = config.vision_config, config.vision_config.hidden_size
        self.self_attn = VisionAttention(vision, fused)
        self.layer_norm1 = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.mlp = VisionMLP(vision)
        self.layer_norm2 = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.question_reducer: nn.Sequential | None = None
        if fused:
            text = config.text_config.d_model
            self.question_reducer = nn.Sequential(
                nn.LayerNorm(text), nn.Linear(text, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False)
            )

    def forward(self, states: Tensor, question_states: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        question = None
        if self.question_reducer is not None and question_states is not None:
            question = self.question_reducer(question_states)  # (batch, words, vision)
        attended = self.self_attn(self.layer_norm1(states), question, mask if question is not None else None)
        states = states + attended
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class VisionTower(nn.Module):
    """Embeddings and layers up to the selected hidden state, split where the question enters."""

    layers: Any  # a ModuleList of VisionLayer

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.trunk_layers = config.trunk_layers
        self.embeddings = VisionEmbeddings(vision)
        self.pre_layrnorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.layers = nn.ModuleList(VisionLayer(config, i in config.fused) for i in range(config.layers_used))

    def trunk(self, pixel_values: Tensor) -> Tensor:
        """The part that never sees the question: (image, 3, height, width) to (image, tokens, vision)."""
        states: Tensor = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.layers[: self.trunk_layers]:
            states = layer(states)
        return states

    def fuse(self, trunk_states: Tensor, question_states: Tensor, question_mask: Tensor) -> Tensor:
        """The layers from the first fused one on.

        `question_states` is (batch, words, text); `question_mask` (batch, words) is 1 where a question token may be
        attended. The published code behaves as if this mask were all ones.
        """
        image = torch.ones(*question_mask.shape[:1], trunk_states.shape[1], device=question_mask.device)
        mask = torch.cat([question_mask.to(image.dtype), image], dim=1).bool()[:, None, None, :]
        states = trunk_states
        for layer in self.layers[self.trunk_layers :]:
            states = layer(states, question_states, mask)
        return states
