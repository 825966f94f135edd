"""The decoder of Llama, Mistral, Qwen2 and their kin as one graph for prompts and single tokens.

Sources: LLaMA (Touvron et al. 2023), rotary positions (RoFormer, Su et al. 2021), grouped queries (Ainslie et al. 2023),
M-RoPE (Qwen2-VL, Wang et al. 2024), as transformers computes them. Cosines and sines are looked up in tables: angles of
far positions have no place in FP16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import merge_heads
from edgevqa.export.components.causal import (
    KeyValue,
    causal_attend,
    causal_bias,
    decoder_plan,
    merge_image,
    project_heads,
)
from edgevqa.export.spec import GraphPlan
from edgevqa.runtime.errors import CheckpointError

TABLE_LENGTH = 8192  # positions that the tables hold, where the model allows more


def max_context(config: Any) -> int:
    """The longest prompt and answer together that the exported decoder takes, in tokens."""
    return min(int(config.max_position_embeddings), TABLE_LENGTH)


class LlamaDecoder(nn.Module):
    """`model` is transformers' decoder (`embed_tokens`, `layers`, `norm`, `rotary_emb`), `lm_head` its vocabulary head.

    `sections` are M-RoPE's numbers of frequencies for time, height and width.
    """

    model: Any
    lm_head: Any
    cosines: Tensor
    sines: Tensor

    def __init__(self, model: Any, lm_head: Any, *, sections: Sequence[int] = ()) -> None:
        super().__init__()
        config = model.config
        self.model = nn.Module()
        self.model.embed_tokens, self.model.layers, self.model.norm = model.embed_tokens, model.layers, model.norm
        self.lm_head = lm_head
        self.tied = lm_head.weight is model.embed_tokens.weight
        self.head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.config = config
        self.sections = tuple(sections)
        cosines, sines = rotary_tables(model, max_context(config))
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def plan(self) -> GraphPlan:
        """The graph `language_decoder`."""
        config = self.config
        return decoder_plan(
            self,
            layers=len(self.model.layers),
            kv_heads=config.num_key_value_heads,
            head=self.head,
            hidden=config.hidden_size,
            vocab_size=config.vocab_size,
            position_rows=3 if self.sections else 0,
        )

    def forward(
        self,
        input_ids: Tensor,
        image_embeds: Tensor,
        image_index: Tensor,
        position_ids: Tensor,
        past_attention_mask: Tensor,
        attention_mask: Tensor,
        past: list[KeyValue],
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits (batch, vocab) after the last token, and every layer's new keys and values."""
        states = merge_image(self.model.embed_tokens(input_ids), image_embeds, image_index)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        bias = causal_bias(past_attention_mask, attention_mask, groups=groups)
        rotation = (self.look_up(self.cosines, position_ids), self.look_up(self.sines, position_ids))
        new: list[KeyValue] = []
        for layer, own in zip(self.model.layers, past, strict=True):
            query, key, value = project_heads(layer.self_attn, rms_norm(layer.input_layernorm, states), self.head)
            query, key = rotate(query, rotation), rotate(key, rotation)
            new.append((key, value))
            mixed = causal_attend(query * self.head**-0.5, new[-1], own, bias)
            states = states + layer.self_attn.o_proj(merge_heads(mixed))
            states = states + layer.mlp(rms_norm(layer.post_attention_layernorm, states))
        last = rms_norm(self.model.norm, states[:, -1:])
        if self.tied:  # two axes trace to a Gemm that reads the embedding table as it lies: no transposed copy of it
            return self.lm_head(last[:, 0]), new
        return self.lm_head(last)[:, 0], new

    def look_up(self, table: Tensor, position_ids: Tensor) -> Tensor:
        """Rows of a table (positions, head), (batch, 1, length, head); with M-RoPE each frequency by its own positions."""
        rows = nn.functional.embedding(position_ids, table)
        if self.sections:  # (3, batch, length, head): time, height, width take turns over the frequencies, twice
            parts = rows.split(self.sections * 2, dim=-1)
            rows = torch.cat([part[number % 3] for number, part in enumerate(parts)], dim=-1)
        return rows[:, None]


def rotary_tables(model: Any, length: int) -> tuple[Tensor, Tensor]:
    """Cosines, and sines as `rotate` takes them, (length, head) of every position, from the model's own rotary module."""
    rotary = model.rotary_emb
    kind = getattr(rotary, "rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise CheckpointError(
            f"The model's rotary positions are of type '{kind}', which change with the length of the prompt; a graph has "
            "one table of them. Expected default, linear, llama3 or yarn."
        )
    positions = torch.arange(length)[None]
    if getattr(rotary, "mrope_section", None) or "mrope" in str(getattr(model.config, "rope_parameters", "")):
        positions = positions.expand(3, 1, -1)
    cosines, sines = rotary(torch.zeros(1, dtype=torch.float32), positions)
    cosines, sines = (table.reshape(-1, length, table.shape[-1])[0].clone() for table in (cosines, sines))
    return cosines, signed(sines)


def rotate(states: Tensor, rotation: KeyValue) -> Tensor:
    """Turn pairs of features, halves apart, by the angles of their positions: cosines, and sines as `signed` gives them."""
    first, second = states.chunk(2, dim=-1)
    return states * rotation[0] + torch.cat([second, first], dim=-1) * rotation[1]


def signed(sines: Tensor) -> Tensor:
    """Sines (..., head) of which the first half is negative, so that no graph has to negate features."""
    first, second = sines.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    """LlamaRMSNorm as a division, the pattern that ONNX Runtime and TensorRT fuse."""
    variance = states.pow(2).mean(-1, keepdim=True)
    out: Tensor = states / torch.sqrt(variance + norm.variance_epsilon) * norm.weight
    return out
