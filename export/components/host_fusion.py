"""The vision graphs of a QA-ViT on another host: trunk, question encoder and fusion, with gates folded, no dead queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import attend, key_bias, merge_heads, split_heads
from edgevqa.export.samples import random_pixels, random_questions
from edgevqa.export.spec import GraphPlan
from edgevqa.models.qavit.hosts import FusedAttention, LayerFusion, QuestionAware

WORDS = 5  # to trace with; the axis is dynamic
Q_AXES = {0: "batch", 1: "words"}


class HostLayer(nn.Module):
    """A layer of the host's tower, fused or not; (batch, tokens, vision) to the same shape.

    A tower's one `qkv` is cut into a query and a key-value Linear where the question gives keys and values alone.
    """

    self_attn: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, fusion = layer.self_attn, None
        if isinstance(attention, FusedAttention):
            attention, fusion = attention.inner.attention, attention.fusion
        self.heads, self.scale = int(attention.num_heads), float(attention.scale)
        self.self_attn = nn.Module()
        if hasattr(attention, "qkv"):
            self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj = _cut(attention.qkv)
        else:
            self.self_attn.q_proj, self.self_attn.k_proj = attention.q_proj, attention.k_proj
            self.self_attn.v_proj = attention.v_proj
        output = getattr(attention, "projection", None) or attention.out_proj
        self.self_attn.out_proj = output if fusion is None else _folded(output, fusion)
        self.question_reducer: Any = None if fusion is None else fusion.question_reducer
        self.layer_norm1, self.layer_norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp

    def forward(self, states: Tensor, question_states: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        normed, attention = self.layer_norm1(states), self.self_attn
        query = split_heads(attention.q_proj(normed) * self.scale, self.heads)
        key, value = (split_heads(project(normed), self.heads) for project in (attention.k_proj, attention.v_proj))
        reducer: Any = self.question_reducer
        fused = reducer is not None and question_states is not None
        if reducer is not None and question_states is not None:
            question = reducer(question_states)  # (batch, words, vision)
            key = torch.cat([split_heads(attention.k_proj(question), self.heads), key], dim=2)
            value = torch.cat([split_heads(attention.v_proj(question), self.heads), value], dim=2)
        mixed = merge_heads(attend(query, key, value, bias if fused else None))
        states = states + attention.out_proj(mixed)
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class HostTrunk(nn.Module):
    """`pixel_values` (image, 3, height, width) to `trunk_states` (image, tokens, vision)."""

    def __init__(self, aware: QuestionAware, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleDict({str(n): HostLayer(aware.tower.layers[n]) for n in range(aware.trunk_layers)})

    def forward(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.embed(pixel_values)
        for layer in self.layers.values():
            states = layer(states)
        return states


class HostFusion(nn.Module):
    """`trunk_states` (1 or batch, tokens, vision) and the question to `image_states` (batch, tokens, vision).

    `finish` is what the host does with the last layer's states.
    """

    def __init__(self, aware: QuestionAware, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        numbers = range(aware.trunk_layers, aware.tower.used)
        self.layers = nn.ModuleDict({str(n): HostLayer(aware.tower.layers[n]) for n in numbers})
        self.finish = finish

    def forward(self, trunk_states: Tensor, question_states: Tensor, attention_mask: Tensor) -> Tensor:
        states = trunk_states.expand(question_states.shape[0], -1, -1)
        seen = torch.ones_like(states[:, :, 0])  # (batch, tokens)
        bias = key_bias(torch.cat([attention_mask.to(seen.dtype), seen], dim=1))
        for layer in self.layers.values():
            states = layer(states, question_states, bias)
        return self.finish(states)


class QuestionEmbedding(nn.Module):
    """`input_ids`, `attention_mask` (batch, words) to the tokens' embeddings, `question_states` (batch, words, text)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.embeddings(input_ids) * attention_mask[..., None].to(torch.float32)
        return out


def trunk_plan(aware: QuestionAware, embed: nn.Module, *, size: int) -> GraphPlan:
    """The graph `vision_trunk`; `embed` makes the first layer's states of pixels, `size` is a picture's side."""
    return GraphPlan(
        name="vision_trunk",
        module=HostTrunk(aware, embed),
        args=(random_pixels(2, height=size, width=size),),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=["trunk_states"],
    )


def question_plan(module: nn.Module, *, vocab_size: int) -> GraphPlan:
    """The graph `question_encoder`."""
    return GraphPlan(
        name="question_encoder",
        module=module,
        args=random_questions(2, WORDS, vocab_size=vocab_size),
        dynamic_shapes=(Q_AXES, Q_AXES),
        input_names=["input_ids", "attention_mask"],
        output_names=["question_states"],
    )


def fusion_plan(aware: QuestionAware, finish: Callable[[Tensor], Tensor], *, tokens: int) -> GraphPlan:
    """The graph `vision_fusion`."""
    mask = torch.ones(2, WORDS, dtype=torch.int64)
    return GraphPlan(
        name="vision_fusion",
        module=HostFusion(aware, finish),
        args=(torch.randn(1, tokens, aware.tower.vision), torch.randn(2, WORDS, aware.tower.text), mask),
        dynamic_shapes=(None, Q_AXES, Q_AXES),
        input_names=["trunk_states", "question_states", "attention_mask"],
        output_names=["image_states"],
        free_axes={"trunk_states": {0: "image"}},
    )


@torch.no_grad()
def _folded(output: Any, fusion: LayerFusion) -> nn.Linear:
    """`output(x) + tanh(g) question_out_proj(x)` as one Linear: weights and biases add up."""
    gate, other = torch.tanh(fusion.question_gate), fusion.question_out_proj
    bias = torch.zeros(output.out_features) if output.bias is None else output.bias
    return _linear(output.weight + gate * other.weight, bias + gate * other.bias)


@torch.no_grad()
def _cut(qkv: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """A Linear of queries, keys and values as three."""
    biases = (None, None, None) if qkv.bias is None else qkv.bias.chunk(3)
    query, key, value = (_linear(*each) for each in zip(qkv.weight.chunk(3), biases, strict=True))
    return query, key, value


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made
