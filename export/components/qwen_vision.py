"""The vision transformer of Qwen2.5-VL: patches of pictures of any size, most layers in windows, some in whole pictures.

Source: Qwen2.5-VL Technical Report (2025), as transformers computes it. What depends on the pictures' sizes is computed by
`runtime/preprocessing/qwen2_vl.py` and looked up here: patches stay in their order and are gathered for each attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevqa.export.components.attention import attend, key_bias, merge_heads
from edgevqa.export.components.causal import KeyValue
from edgevqa.export.components.llama import rms_norm, rotate, signed

Groups = tuple[Tensor, Tensor]
"""The patches of each window or picture (groups, longest; -1 where there is none), and each patch's place among them."""


class QwenVision(nn.Module):
    """Patches (patches, values) to `image_states` (1, patches, vision), in the order of the patches.

    `longest_side` is the most patches a side, for the tables of rotary positions.
    """

    visual: Any
    cosines: Tensor
    sines: Tensor

    def __init__(self, visual: Any, *, longest_side: int) -> None:
        super().__init__()
        self.blocks = visual.blocks
        self.whole = frozenset(visual.fullatt_block_indexes)
        kernel = visual.patch_embed.proj.weight  # one step of this convolution is a patch: a Linear
        self.patch_embed = nn.Linear(kernel[0].numel(), kernel.shape[0], bias=False)
        self.patch_embed.weight = nn.Parameter(kernel.detach().flatten(1), requires_grad=False)
        cosines, sines = _tables(visual.rotary_pos_emb, longest_side)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        window_patches: Tensor,
        window_places: Tensor,
        frame_patches: Tensor,
        frame_places: Tensor,
    ) -> Tensor:
        """The last layer's states (1, patches, vision)."""
        states: Tensor = self.patch_embed(pixel_values[None])
        rotation = (_look_up(self.cosines, patch_positions), signed(_look_up(self.sines, patch_positions)))
        windows, frames = (window_patches, window_places), (frame_patches, frame_places)
        for number, block in enumerate(self.blocks):
            groups = frames if number in self.whole else windows
            states = states + _attention(block.attn, rms_norm(block.norm1, states), rotation, groups)
            states = states + block.mlp(rms_norm(block.norm2, states))
        return states


class PatchMerger(nn.Module):
    """`image_states` (1, patches, vision) to `image_embeds` (1, slots, text): patches that stand together become one."""

    def __init__(self, merger: Any, *, together: int) -> None:
        super().__init__()
        self.norm, self.mlp, self.together = merger.ln_q, merger.mlp, together

    def forward(self, image_states: Tensor) -> Tensor:
        states = rms_norm(self.norm, image_states)
        merged: Tensor = self.mlp(states.unflatten(1, (-1, self.together)).flatten(2))
        return merged


def _attention(attention: Any, states: Tensor, rotation: KeyValue, groups: Groups) -> Tensor:
    """Attention within each group, for states (1, patches, vision)."""
    heads = attention.num_heads
    parts = [
        part.unflatten(-1, (heads, -1)) for part in attention.qkv(states)[0].chunk(3, dim=-1)
    ]  # (patches, heads, head)
    query, key = (rotate(part, rotation) for part in parts[:2])
    members, places = groups
    index = members.clamp(min=0)
    grouped = [_rows(part, index).transpose(1, 2) for part in (query * attention.scaling, key, parts[2])]
    bias = key_bias((members >= 0).to(torch.int64))
    mixed = merge_heads(attend(grouped[0], grouped[1], grouped[2], bias))  # (groups, longest, vision)
    found: Tensor = attention.proj(_rows(mixed.flatten(0, 1), places)[None])
    return found


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """The rows of `values` that `index` names; (*index, *rest)."""
    found: Tensor = nn.functional.embedding(index, values.flatten(1)).unflatten(-1, values.shape[1:])
    return found


def _look_up(table: Tensor, positions: Tensor) -> Tensor:
    """Values (patches, 1, head) of row and column, for both halves of a head."""
    half = nn.functional.embedding(positions, table).flatten(1)
    return torch.cat([half, half], dim=-1)[:, None]


def _tables(rotary: Any, length: int) -> KeyValue:
    """Cosines and sines (length, head / 4) of every row or column, from the model's own rotary module."""
    positions = torch.arange(length)[:, None].expand(-1, 2)
    cosines, sines = rotary(torch.zeros(1), positions)
    quarter = cosines.shape[-1] // 4
    return cosines[:, :quarter].clone(), sines[:, :quarter].clone()
