"""GPT-2 as a decoder with cross-attention: cross keys and values, and the decoder.

Source of the mathematics: Radford et al. 2019, as transformers computes it. Its Conv1D layers store weights as (in, out),
which is what MatMul reads: they become Linears under their own names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevqa.export.components.attention import attend, merge_heads, split_heads
from edgevqa.export.components.causal import KeyValue
from edgevqa.export.components.cross import attend_joined, places, slots_bias


def cross_pairs(decoder: Any, states: Tensor) -> list[KeyValue]:
    """Cross keys and values (batch, heads, keys, head) of every layer, of states (batch, keys, width)."""
    cross: list[KeyValue] = []
    for block in decoder.transformer.h:
        attention = block.crossattention
        key, value = linear(attention.c_attn, states).chunk(2, dim=-1)
        cross.append((split_heads(key, attention.num_heads), split_heads(value, attention.num_heads)))
    return cross


class Gpt2Decoder(nn.Module):
    """Tokens (batch, length): logits (batch, vocab) after the last, and their slots of each layer's cache.

    Slots of `past` (batch, heads, capacity, head) from `cache_length` (1,) on are ignored; every cross key is seen.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, decoder_input_ids: Tensor, cache_length: Tensor, past: list[KeyValue], cross: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        transformer = self.decoder.transformer
        states = transformer.wte(decoder_input_ids) + transformer.wpe(places(decoder_input_ids, cache_length))
        bias = slots_bias(past[0][0], cache_length, decoder_input_ids)
        new: list[KeyValue] = []
        for block, own, other in zip(transformer.h, past, cross, strict=True):
            attention = block.attn
            query, key, value = (
                split_heads(part, attention.num_heads)
                for part in linear(attention.c_attn, block.ln_1(states)).chunk(3, dim=-1)
            )
            new.append((key, value))
            mixed = merge_heads(attend_joined(query * attention.scaling, new[-1], own, bias))
            states = states + linear(attention.c_proj, mixed)
            attention = block.crossattention
            query = split_heads(linear(attention.q_attn, block.ln_cross_attn(states)), attention.num_heads)
            states = states + linear(attention.c_proj, merge_heads(attend(query * attention.scaling, *other)))
            states = states + linear(block.mlp.c_proj, _activation(block.mlp, block.ln_2(states)))
        return self.decoder.lm_head(transformer.ln_f(states[:, -1:])[:, 0]), new


def linear(layer: Any, states: Tensor) -> Tensor:
    """A Conv1D layer as one MatMul and one Add."""
    out: Tensor = states @ layer.weight + layer.bias
    return out


def _activation(mlp: Any, states: Tensor) -> Tensor:
    hidden = linear(mlp.c_fc, states)
    if type(mlp.act).__name__ == "NewGELUActivation":
        return nn.functional.gelu(hidden, approximate="tanh")  # the same function as one operator
    out: Tensor = mlp.act(hidden)
    return out
