"""QA-ViT fusion in the vision tower of another model: the host stays as it is, a few tensors a layer are added.

Source: Question Aware Vision Transformer for Multimodal Reasoning (CVPR 2024), which fuses into ViT+T5, BLIP-2,
InstructBLIP and LLaVA-1.5 in the same way.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgevqa.models.qavit.config import fused_layers
from edgevqa.runtime.errors import CheckpointError, ConfigError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "fusion.safetensors"


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `config.json` beside `fusion.safetensors`.

    `host` is the host's checkpoint: a folder (relative to this one) or a hub id. `model_type` is `qavit_` and the host's
    family. Questions are at most `max_question_tokens` tokens.
    """

    model_type: str
    host: str = "host"
    integration_point: str = "late"
    max_question_tokens: int = 30

    @classmethod
    def read(cls, folder: Path) -> HostConfig:
        """Read `config.json`. Raises `CheckpointError` where there is none, and `ConfigError` naming the field."""
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {CONFIG_NAME}; it names the host and where the question enters.")
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path} is not the configuration of a QA-ViT on another host: {error}.") from error

    def save(self, folder: Path) -> None:
        """Write `config.json`."""
        folder.joinpath(CONFIG_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


class LayerFusion(nn.Module):
    """What a fused layer has beside the host's: the question's reducer, a gated projection, and the gate (0 at the start)."""

    def __init__(self, *, vision: int, text: int) -> None:
        super().__init__()
        self.question_reducer = nn.Sequential(
            nn.LayerNorm(text), nn.Linear(text, vision, bias=False), nn.GELU(), nn.Linear(vision, vision, bias=False)
        )
        self.question_out_proj = nn.Linear(vision, vision)
        self.question_gate = nn.Parameter(torch.zeros(1))


class Projections(nn.Module):
    """Query, key, value and output of a tower's attention as functions, whether it keeps them apart or in one `qkv`."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        self.heads = int(attention.num_heads)
        self.scale = float(attention.scale)

    @property
    def output(self) -> nn.Linear:
        found: nn.Linear = getattr(self.attention, "projection", None) or self.attention.out_proj
        return found

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, tokens, width) each."""
        if hasattr(self.attention, "qkv"):
            query, key, value = self.attention.qkv(states).chunk(3, dim=-1)
            return query, key, value
        return self.attention.q_proj(states), self.attention.k_proj(states), self.attention.v_proj(states)

    def split(self, states: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, head)."""
        heads: Tensor = states.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class FusedAttention(nn.Module):
    """The host's attention with the question's tokens before its keys and values; only image tokens query.

    `asked` holds the question of the forward passes that follow: states (batch, words, text) and mask (batch, words).
    Without one it computes what the host's does.
    """

    def __init__(self, attention: Any, fusion: LayerFusion) -> None:
        super().__init__()
        self.inner = Projections(attention)
        self.fusion = fusion
        self.asked: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> tuple[Tensor, None]:
        """As the attention of transformers: the states first, weights of attention (None) second; no other argument matters."""
        query, key, value = self.inner.project(hidden_states)
        mask: Tensor | None = None
        if self.asked is not None:
            states, question_mask = self.asked
            first_key, first_value = self.inner.project(self.fusion.question_reducer(states))[1:]
            batch = hidden_states.shape[0]
            key = torch.cat([first_key.expand(batch, -1, -1), key], dim=1)
            value = torch.cat([first_value.expand(batch, -1, -1), value], dim=1)
            image = torch.ones(len(question_mask), hidden_states.shape[1], dtype=torch.bool)
            mask = torch.cat([question_mask.bool(), image], dim=1)[:, None, None, :]
        query, key, value = (self.inner.split(each) for each in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.inner.scale)
        mixed = attended.transpose(1, 2).flatten(2)
        out: Tensor = self.inner.output(mixed)
        if self.asked is not None:
            out = out + self.fusion.question_out_proj(mixed) * torch.tanh(self.fusion.question_gate)
        return out, None


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What fusion must know of a host: its vision layers, how many of them run, the widths, and its language model.

    `encoder` is the language model's encoder where it has one; else questions are its token embeddings.
    """

    layers: Any
    used: int
    vision: int
    text: int
    embeddings: Any
    encoder: Any = None


class QuestionAware:
    """A host whose fused layers attend to the question; `model` is the host with its attention modules replaced."""

    def __init__(self, model: Any, tower: Tower, config: HostConfig) -> None:
        self.model, self.tower, self.config = model, tower, config
        points = fused_layers(config.integration_point, len(tower.layers))
        self.fused = tuple(number for number in points if number < tower.used)
        if not self.fused:
            raise ConfigError(
                f"integration_point '{config.integration_point}' fuses none of the {tower.used} layers that the host "
                "runs. Export the host itself, or choose another point."
            )
        self.fusion = nn.ModuleDict(
            {str(number): LayerFusion(vision=tower.vision, text=tower.text) for number in self.fused}
        )
        for number in self.fused:
            fusion: Any = self.fusion[str(number)]
            tower.layers[number].self_attn = FusedAttention(tower.layers[number].self_attn, fusion)
        self.copy_gated_projections()

    @property
    def trunk_layers(self) -> int:
        """How many layers lie below the first fused one."""
        return self.fused[0]

    @torch.no_grad()
    def copy_gated_projections(self) -> None:
        """Start each gated projection as a copy of the host's own, as published (with its gate at 0)."""
        for number in self.fused:
            fusion: Any = self.fusion[str(number)]
            fusion.question_out_proj.load_state_dict(self.tower.layers[number].self_attn.inner.output.state_dict())

    def encode_question(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of a question, (batch, words, text), by the language model's encoder or its embeddings."""
        if self.tower.encoder is None:
            states: Tensor = self.tower.embeddings(input_ids)
            return states
        encoded: Tensor = self.tower.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return encoded

    @contextmanager
    def asking(self, input_ids: Tensor, attention_mask: Tensor) -> Generator[None, None, None]:
        """Within it, the vision tower sees this question (batch, words)."""
        asked = (self.encode_question(input_ids, attention_mask), attention_mask)
        attentions = [self.tower.layers[number].self_attn for number in self.fused]
        for attention in attentions:
            attention.asked = asked
        try:
            yield
        finally:
            for attention in attentions:
                attention.asked = None

    def save_fusion(self, folder: Path) -> None:
        """Write `config.json` and `fusion.safetensors`; the host's checkpoint is written by itself."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        state = {name: tensor.contiguous() for name, tensor in self.fusion.state_dict().items()}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        folder.joinpath(WEIGHTS_NAME).chmod(0o644)  # safetensors makes it unreadable to others

    def load_fusion(self, folder: Path) -> None:
        """Read `fusion.safetensors`. Raises `CheckpointError` that says what does not fit."""
        path = folder / WEIGHTS_NAME
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}, the weights of the fused layers.")
        try:
            state = {name: tensor.float() for name, tensor in load_file(path).items()}
            self.fusion.load_state_dict(state)
        except Exception as error:  # safetensors raises its own, unexported type
            reason = " ".join(str(error).split())[:400]
            raise CheckpointError(f"{path} does not fit the host and the configuration: {reason}") from error
        self.fusion.eval().requires_grad_(False)
