"""The decoder of OPT as one graph for prompts and single tokens.

Source: OPT (Zhang et al. 2022), as transformers computes it.
"""

from __future__ import annotations

from typing import Any

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


class OptDecoder(nn.Module):
    """`language_model` is transformers' `OPTForCausalLM`; pictures are embedded like its tokens."""

    model: Any
    lm_head: Any

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.config = language_model.config
        self.head = int(self.config.hidden_size // self.config.num_attention_heads)
        theirs = language_model.model.decoder
        self.model = nn.Module()
        self.model.decoder = nn.Module()
        for name in ("embed_tokens", "embed_positions", "layers", "project_in", "project_out", "final_layer_norm"):
            setattr(self.model.decoder, name, getattr(theirs, name))
        self.offset = int(theirs.embed_positions.offset)
        self.lm_head = language_model.lm_head

    def plan(self) -> GraphPlan:
        """The graph `language_decoder`."""
        config = self.config
        return decoder_plan(
            self,
            layers=config.num_hidden_layers,
            kv_heads=config.num_attention_heads,
            head=self.head,
            hidden=config.word_embed_proj_dim,
            vocab_size=config.vocab_size,
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
        decoder = self.model.decoder
        states = merge_image(decoder.embed_tokens(input_ids), image_embeds, image_index)
        if decoder.project_in is not None:
            states = decoder.project_in(states)
        states = states + nn.functional.embedding(position_ids + self.offset, decoder.embed_positions.weight)
        bias = causal_bias(past_attention_mask, attention_mask)
        new: list[KeyValue] = []
        for layer, own in zip(decoder.layers, past, strict=True):
            states, slot = self.run_layer(layer, states, own, bias)
            new.append(slot)
        last = states[:, -1:]
        for part in (decoder.final_layer_norm, decoder.project_out):
            last = last if part is None else part(last)
        return self.lm_head(last)[:, 0], new

    def run_layer(self, layer: Any, states: Tensor, past: KeyValue, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """Attention and feed-forward, each normalised before or, in OPT-350m, after."""
        before = bool(layer.do_layer_norm_before)
        attention_norm, last_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        query, key, value = project_heads(layer.self_attn, attention_norm(states) if before else states, self.head)
        mixed = causal_attend(query * self.head**-0.5, (key, value), past, bias)
        states = states + layer.self_attn.out_proj(merge_heads(mixed))
        states = states if before else attention_norm(states)
        hidden = layer.activation_fn(layer.fc1(last_norm(states) if before else states))
        states = states + layer.fc2(hidden)
        return states if before else last_norm(states), (key, value)
