"""A ViT or DeiT without the mask that transformers makes for it: it hides nothing, and would be added in every layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def vit_states(model: Any, pixel_values: Tensor) -> Tensor:
    """`last_hidden_state` (batch, special tokens + patches, width) of a `ViTModel` or `DeiTModel`."""
    states: Tensor = model.embeddings(pixel_values)
    for layer in model.layers:
        states = layer(states, None)
    normed: Tensor = model.layernorm(states)
    return normed
