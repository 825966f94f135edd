"""BLIP's graphs: the vision transformer, the text encoder that attends to the picture, and the decoder.

Source of the mathematics: BLIP (Li et al., ICML 2022), as transformers computes it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevqa.export.components.attention import attend, key_bias, merge_heads, split_heads
from edgevqa.export.components.causal import KeyValue
from edgevqa.export.components.cross import attend_joined, places, slots_bias


class BlipVision(nn.Module):
    """`pixel_values` (image, 3, height, width) to `image_embeds` (image, tokens, width): the class token, then patches."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixel_values: Tensor) -> Any:
        states = self.vision_model.embeddings(pixel_values)
        for layer in self.vision_model.encoder.layers:
            attention, normed = layer.self_attn, layer.layer_norm1(states)
            query, key, value = (
                split_heads(part, attention.num_heads) for part in attention.qkv(normed).chunk(3, dim=-1)
            )
            mixed = merge_heads(attend(query * attention.scale, key, value))
            states = states + attention.projection(mixed)
            states = states + layer.mlp(layer.layer_norm2(states))
        return self.vision_model.post_layernorm(states)


class BlipTextEncoder(nn.Module):
    """A text encoder (transformers' `BlipTextModel`) on ids and their mask, and on `image_embeds` where they are given."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.embeddings, self.encoder = text_encoder.embeddings, text_encoder.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor | None = None) -> Tensor:
        """States (batch, words, text)."""
        words, positions = self.embeddings.word_embeddings, self.embeddings.position_embeddings.weight
        states: Tensor = self.embeddings.LayerNorm(words(input_ids) + positions[: input_ids.shape[1]])
        bias = key_bias(attention_mask)
        for layer in self.encoder.layer:
            query, key, value = _project(layer.attention.self, states, states)
            states = _mix(layer.attention, attend(query, key, value, bias), states)
            if image_embeds is not None:
                query, key, value = _project(layer.crossattention.self, states, image_embeds)
                states = _mix(layer.crossattention, attend(query, key, value), states)
            states = _feed_forward(layer, states)
        return states


class QuestionEncoder(nn.Module):
    """A question about a picture to its mask and the decoder's cross keys and values of every layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_encoder = BlipTextEncoder(model.text_encoder)
        self.text_decoder = model.text_decoder

    def forward(self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[KeyValue]]:
        states = self.text_encoder(input_ids, attention_mask, image_embeds)
        return attention_mask.clone(), cross_pairs(self.text_decoder, states)


class CaptionVision(BlipVision):
    """`pixel_values` (image, 3, height, width) to the decoder's cross keys and values of every layer."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.vision_model)
        self.text_decoder = model.text_decoder

    def forward(self, pixel_values: Tensor) -> Any:
        return cross_pairs(self.text_decoder, super().forward(pixel_values))


class BlipDecoder(nn.Module):
    """Tokens (batch, length): logits (batch, vocab) after the last, and their slots of each layer's cache.

    Slots of `past` (batch, heads, capacity, head) from `cache_length` (1,) on are ignored. Without
    `encoder_attention_mask` every cross key is seen.
    """

    def __init__(self, text_decoder: Any) -> None:
        super().__init__()
        self.text_decoder = text_decoder

    def forward(
        self,
        decoder_input_ids: Tensor,
        cache_length: Tensor,
        past: list[KeyValue],
        cross: list[KeyValue],
        encoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        embeddings = self.text_decoder.bert.embeddings
        position = embeddings.position_embeddings(places(decoder_input_ids, cache_length))  # (length, text)
        states = embeddings.LayerNorm(embeddings.word_embeddings(decoder_input_ids) + position)
        bias = slots_bias(past[0][0], cache_length, decoder_input_ids)
        seen = None if encoder_attention_mask is None else key_bias(encoder_attention_mask)
        new: list[KeyValue] = []
        for layer, own, other in zip(self.text_decoder.bert.encoder.layer, past, cross, strict=True):
            query, key, value = _project(layer.attention.self, states, states)
            new.append((key, value))
            states = _mix(layer.attention, attend_joined(query, new[-1], own, bias), states)
            query = _query(layer.crossattention.self, states)
            states = _mix(layer.crossattention, attend(query, *other, seen), states)
            states = _feed_forward(layer, states)
        head = self.text_decoder.cls.predictions
        return head.decoder(head.transform(states[:, -1:])[:, 0]), new


def cross_pairs(text_decoder: Any, states: Tensor) -> list[KeyValue]:
    """Cross keys and values (batch, heads, keys, head) of every layer."""
    crosses = (layer.crossattention.self for layer in text_decoder.bert.encoder.layer)
    return [
        (
            split_heads(cross.key(states), cross.num_attention_heads),
            split_heads(cross.value(states), cross.num_attention_heads),
        )
        for cross in crosses
    ]


def _query(attention: Any, states: Tensor) -> Tensor:
    """The query, scaled."""
    scale = attention.attention_head_size**-0.5
    return split_heads(attention.query(states) * scale, attention.num_attention_heads)


def _project(attention: Any, states: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scaled query of `states`, and keys and values of `keys`, which may be one row for all of `states`."""
    key, value = attention.key(keys), attention.value(keys)
    if keys.shape[0] == 1:  # after the projection, which so runs once
        key, value = (each.expand(states.shape[0], -1, -1) for each in (key, value))
    heads = attention.num_attention_heads
    return _query(attention, states), split_heads(key, heads), split_heads(value, heads)


def _mix(attention: Any, mixed: Tensor, states: Tensor) -> Tensor:
    """What the heads found, projected, added to `states`, and normalised after it."""
    out: Tensor = attention.output.LayerNorm(attention.output.dense(merge_heads(mixed)) + states)
    return out


def _feed_forward(layer: Any, states: Tensor) -> Tensor:
    out: Tensor = layer.output.LayerNorm(layer.output.dense(layer.intermediate(states)) + states)
    return out
