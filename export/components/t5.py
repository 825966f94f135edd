"""The T5 graphs: question encoder, language encoder with cross-attention keys, and the one-token decoder.

Source of the mathematics: Raffel et al. 2020 and transformers' T5; relative positions are looked up by distance in a
table of buckets, which is exact because buckets saturate at the maximum distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from edgevqa.export.components.attention import MASKED, attend, key_bias, merge_heads, split_heads

KeyValue = tuple[Tensor, Tensor]


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    """T5LayerNorm as a division, the pattern that ONNX Runtime and TensorRT fuse."""
    variance = states.pow(2).mean(-1, keepdim=True)
    out: Tensor = states / torch.sqrt(variance + norm.variance_epsilon) * norm.weight
    return out


def feed_forward(layer: Any, states: Tensor) -> Tensor:
    """Pre-norm feed-forward with residual, gated or not."""
    dense, normed = layer.DenseReluDense, rms_norm(layer.layer_norm, states)
    if hasattr(dense, "wi_0"):
        hidden = _activation(dense.act, dense.wi_0(normed)) * dense.wi_1(normed)
    else:
        hidden = _activation(dense.act, dense.wi(normed))
    out: Tensor = states + dense.wo(hidden)
    return out


def _activation(act: nn.Module, states: Tensor) -> Tensor:
    if type(act).__name__ == "NewGELUActivation":
        return nn.functional.gelu(states, approximate="tanh")  # the same function as one operator
    out: Tensor = act(states)
    return out


def bucket_table(attention: T5Attention, *, bidirectional: bool) -> Tensor:
    """Bucket of every relative position from -max_distance to max_distance (to 0 for a decoder)."""
    far = attention.relative_attention_max_distance
    positions = torch.arange(-far, far + 1 if bidirectional else 1)
    buckets: Tensor = attention._relative_position_bucket(  # pyright: ignore[reportPrivateUsage]
        positions,
        bidirectional=bidirectional,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=far,
    )
    return buckets


class _Encoder(nn.Module):
    """The T5 encoder stack on embedded inputs."""

    block: Any
    buckets: Tensor

    def __init__(self, language_model: T5ForConditionalGeneration) -> None:
        super().__init__()
        self.block = language_model.encoder.block
        self.final_layer_norm = language_model.encoder.final_layer_norm
        first = self.block[0].layer[0].SelfAttention
        self.heads, self.far = first.n_heads, first.relative_attention_max_distance
        self.register_buffer("buckets", bucket_table(first, bidirectional=True), persistent=False)

    def position_bias(self, length: Tensor) -> Tensor:
        """(1, heads, length, length) for positions (length,)."""
        distance = (length[None, :] - length[:, None]).clamp(-self.far, self.far) + self.far
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias(self.buckets)  # (distances, heads)
        return nn.functional.embedding(distance, table).permute(2, 0, 1).unsqueeze(0)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        bias = self.position_bias(torch.arange(states.shape[1], device=states.device)) + key_bias(mask)
        for block in self.block:
            attention = block.layer[0].SelfAttention
            normed = rms_norm(block.layer[0].layer_norm, states)
            query, key, value = (split_heads(p(normed), self.heads) for p in (attention.q, attention.k, attention.v))
            states = states + attention.o(merge_heads(attend(query, key, value, bias)))
            states = feed_forward(block.layer[1], states)
        return rms_norm(self.final_layer_norm, states)


class QuestionEncoder(nn.Module):
    """`input_ids`, `attention_mask` (batch, words) to `question_states` (batch, words, text)."""

    language_model: Any
    question_embedding: Any

    def __init__(self, language_model: T5ForConditionalGeneration, embedding: nn.Embedding | None) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.encoder = _Encoder(language_model)
        if embedding is None:
            self.language_model.shared = language_model.shared
        else:
            self.question_embedding = embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table = self.question_embedding if hasattr(self, "question_embedding") else self.language_model.shared
        out: Tensor = self.language_model.encoder(table(input_ids), attention_mask)
        return out


class LanguageEncoder(nn.Module):
    """Image embeddings and text to encoder states, their mask, and each decoder layer's cross keys and values."""

    language_model: Any

    def __init__(self, language_model: T5ForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.shared = language_model.shared
        self.language_model.encoder = _Encoder(language_model)
        self.language_model.decoder = nn.Module()
        self.language_model.decoder.block = language_model.decoder.block
        self.heads = language_model.config.num_heads

    def forward(
        self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        text = self.language_model.shared(input_ids)
        # a batch of ones in the mask's own type, without an operator that depends on the dtype of the image
        seen = torch.ones_like(image_embeds[:, :, 0], dtype=attention_mask.dtype)
        mask = torch.cat([seen, attention_mask], dim=1)
        hidden = self.language_model.encoder(torch.cat([image_embeds, text], dim=1), mask)
        crosses = (block.layer[1].EncDecAttention for block in self.language_model.decoder.block)
        return (
            hidden,
            mask,
            [(split_heads(c.k(hidden), self.heads), split_heads(c.v(hidden), self.heads)) for c in crosses],
        )


class LanguageDecoder(nn.Module):
    """One token: logits (batch, vocab) and the new slot of each layer's cache.

    `past` is (batch, heads, capacity, head) a layer; slots from `cache_length` (1,) on are ignored. The caller writes the
    new keys and values into slot `cache_length`, so shapes stay fixed and nothing is concatenated but scores.
    """

    language_model: Any
    buckets: Tensor

    def __init__(self, language_model: T5ForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.shared, self.language_model.lm_head = language_model.shared, language_model.lm_head
        decoder, theirs = nn.Module(), language_model.decoder
        decoder.block, decoder.final_layer_norm = theirs.block, theirs.final_layer_norm
        self.language_model.decoder = decoder
        config = language_model.config
        self.heads = config.num_heads
        self.output_scale = config.d_model**-0.5 if config.scale_decoder_outputs else None
        first: Any = theirs.block[0]
        self.far = first.layer[0].SelfAttention.relative_attention_max_distance
        self.register_buffer(
            "buckets", bucket_table(first.layer[0].SelfAttention, bidirectional=False), persistent=False
        )

    def past_bias(self, past: Tensor, cache_length: Tensor) -> tuple[Tensor, Tensor]:
        """Position bias and mask of the past slots (1, heads, 1, capacity), and the bias of the new one (heads, 1, 1)."""
        attention = self.language_model.decoder.block[0].layer[0].SelfAttention
        table = attention.relative_attention_bias(self.buckets)  # (distances, heads)
        slots = torch.arange(past.shape[2], device=past.device)
        distance = (slots - cache_length).clamp(-self.far, 0) + self.far  # (capacity,)
        bias = nn.functional.embedding(distance, table).T[None, :, None, :]
        masked = (slots >= cache_length).to(torch.float32) * MASKED
        return bias + masked, table[-1][:, None, None]

    def forward(
        self,
        decoder_input_ids: Tensor,
        cache_length: Tensor,
        past: list[KeyValue],
        cross: list[KeyValue],
        encoder_attention_mask: Tensor,
    ) -> tuple[Tensor, list[KeyValue]]:
        states = self.language_model.shared(decoder_input_ids)
        past_bias, new_bias = self.past_bias(past[0][0], cache_length)
        cross_bias = key_bias(encoder_attention_mask)
        new: list[KeyValue] = []
        for block, own, other in zip(self.language_model.decoder.block, past, cross, strict=True):
            mixed, slot = self.self_attend(block.layer[0], states, own, (past_bias, new_bias))
            states = states + mixed
            new.append(slot)
            attention = block.layer[1].EncDecAttention
            query = split_heads(attention.q(rms_norm(block.layer[1].layer_norm, states)), self.heads)
            states = states + attention.o(merge_heads(attend(query, *other, cross_bias)))
            states = feed_forward(block.layer[2], states)
        states = rms_norm(self.language_model.decoder.final_layer_norm, states)
        if self.output_scale is not None:
            states = states * self.output_scale
        return self.language_model.lm_head(states)[:, 0], new

    def self_attend(self, layer: Any, states: Tensor, past: KeyValue, bias: KeyValue) -> tuple[Tensor, KeyValue]:
        attention, normed = layer.SelfAttention, rms_norm(layer.layer_norm, states)
        query, key, value = (split_heads(p(normed), self.heads) for p in (attention.q, attention.k, attention.v))
        scores = torch.cat(
            [query @ past[0].transpose(-1, -2) + bias[0], query @ key.transpose(-1, -2) + bias[1]], dim=-1
        )
        weights = torch.softmax(scores, dim=-1)
        capacity = past[0].shape[2]
        mixed = weights[..., :capacity] @ past[1] + weights[..., capacity:] @ value
        return attention.o(merge_heads(mixed)), (key, value)
