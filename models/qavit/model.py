"""QA-ViT with its T5 language head, in eager PyTorch: the reference that every exported graph is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from edgevqa.models.qavit.config import QAViTConfig, TextConfig, read_config
from edgevqa.models.qavit.vision import VisionTower
from edgevqa.runtime.errors import CheckpointError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


class Projector(nn.Module):
    """The translation MLP: vision to text width, ReLU between its Linears, none at the end."""

    def __init__(self, vision: int, text: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(vision if i == 0 else text, text) for i in range(layers))

    def forward(self, states: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            states = layer(states if i == 0 else torch.relu(states))
        return states


class QAViTForVQA(nn.Module):
    """Question-aware vision transformer, projector and T5.

    The question is encoded by the T5 encoder (with its own embedding table), attended to by the fused vision layers,
    and joined as text to the projected image tokens. Questions are at most `config.max_question_tokens` tokens.
    """

    language_model: Any  # a T5ForConditionalGeneration, whose own annotations are too loose to check against

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text_config
        self.vision = VisionTower(config)
        self.projector = Projector(config.vision_config.hidden_size, text.d_model, config.projector_layers)
        self.language_model = _build_t5(text)
        if config.question_embedding:
            self.question_embedding = nn.Embedding(text.vocab_size, text.d_model)
            nn.init.normal_(self.question_embedding.weight, std=1.0)
        self.copy_gated_projections()

    @torch.no_grad()
    def copy_gated_projections(self) -> None:
        """Start each gated projection as a copy of the ordinary one, as published (with its gate at 0)."""
        for layer in self.vision.layers:
            if layer.question_reducer is not None:
                layer.self_attn.question_out_proj.load_state_dict(layer.self_attn.out_proj.state_dict())

    def encode_question(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """T5 encoder output of the question: (batch, words) to (batch, words, text)."""
        table = self.question_embedding if self.config.question_embedding else self.language_model.shared
        encoded = self.language_model.encoder(inputs_embeds=table(input_ids), attention_mask=attention_mask)
        states: Tensor = encoded.last_hidden_state
        return states

    def encode_image(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, *, question_mask: Tensor | None = None
    ) -> Tensor:
        """Vision states of each question: (batch, tokens, vision).

        `question_mask` overrides `attention_mask` in the fused layers (all ones reproduces the published code on
        padded batches; all zeros shows the model without its question keys). One image is broadcast over a batch.
        """
        mask = attention_mask if question_mask is None else question_mask
        return self.ask_trunk(self.vision.trunk(pixel_values), input_ids, attention_mask, question_mask=mask)

    def ask_trunk(
        self, trunk_states: Tensor, input_ids: Tensor, attention_mask: Tensor, *, question_mask: Tensor
    ) -> Tensor:
        """What `encode_image` does after the trunk: (1 or batch, tokens, vision) to (batch, tokens, vision)."""
        states = trunk_states.expand(input_ids.shape[0], -1, -1)
        if not self.config.fused:
            return states
        return self.vision.fuse(states, self.encode_question(input_ids, attention_mask), question_mask)

    def encode(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """T5 encoder over [image, text]: hidden states (batch, tokens + words, text) and their mask."""
        image_embeds = self.projector(image_states)
        joined = torch.cat([image_embeds, self.language_model.shared(input_ids)], dim=1)
        ones = torch.ones(image_embeds.shape[:2], dtype=attention_mask.dtype, device=attention_mask.device)
        mask = torch.cat([ones, attention_mask], dim=1)
        encoded = self.language_model.encoder(inputs_embeds=joined, attention_mask=mask)
        return encoded.last_hidden_state, mask

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        image_index: Tensor | None = None,
        question_mask: Tensor | None = None,
    ) -> Seq2SeqLMOutput:
        """Loss (with `labels`, -100 ignored) and logits (batch, length, vocab).

        `image_index` (batch,) says which picture each question is about, so that the trunk runs once a picture.
        """
        states = self.vision.trunk(pixel_values)
        states = states.expand(input_ids.shape[0], -1, -1) if image_index is None else states[image_index]
        if self.config.fused:
            question_states = self.encode_question(input_ids, attention_mask)
            states = self.vision.fuse(
                states, question_states, attention_mask if question_mask is None else question_mask
            )
        hidden, mask = self.encode(states, input_ids, attention_mask)
        decoded: Seq2SeqLMOutput = self.language_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            labels=labels,
            decoder_input_ids=decoder_input_ids,
        )
        return decoded

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        question_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Answer ids (batch, at most max_new_tokens + 1), starting with the decoder's start token."""
        states = self.encode_image(pixel_values, input_ids, attention_mask, question_mask=question_mask)
        return self.generate_from(states, input_ids, attention_mask, **options)

    @torch.no_grad()
    def generate_from(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """What `generate` does after the vision model."""
        hidden, mask = self.encode(image_states, input_ids, attention_mask)
        options.setdefault("max_new_tokens", self.config.max_new_tokens)
        ids: Tensor = self.language_model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, **options
        )
        return ids

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; tensors that share memory are written once."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(CONFIG_NAME).write_bytes(
            msgspec.json.format(msgspec.json.encode(self.config), indent=2) + b"\n"
        )
        state = {k: v.contiguous() for k, v in self.state_dict().items() if k not in self.aliases}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        folder.joinpath(WEIGHTS_NAME).chmod(0o644)  # safetensors makes it unreadable to others

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> QAViTForVQA:
        """Load a folder of our own format, in float32 and eval mode. Raises `CheckpointError`, `ConfigError`."""
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not folder.joinpath(name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}; a QA-ViT folder holds {CONFIG_NAME} and {WEIGHTS_NAME}."
                )
        config = read_config(folder / CONFIG_NAME)
        try:
            state = load_file(folder / WEIGHTS_NAME)
        except Exception as error:  # safetensors raises its own, unexported type
            raise CheckpointError(f"{folder / WEIGHTS_NAME} cannot be read: {error}.") from error
        return cls.from_state(config, state, where=str(folder / WEIGHTS_NAME))

    @classmethod
    def from_state(cls, config: QAViTConfig, state: dict[str, Tensor], *, where: str) -> QAViTForVQA:
        """Build a model around `state` (float tensors are taken over as they are where they are float32).

        Raises `CheckpointError` that names missing, unexpected and misshapen tensors.
        """
        with torch.device("meta"):
            model = cls(config)
        state = {k: v.float() for k, v in state.items()}
        for alias, name in model.aliases.items():
            if name not in state:
                continue
            if alias in state and not torch.equal(state[alias], state[name]):
                raise CheckpointError(
                    f"{where} has a {alias} of its own, but the configuration ties it to {name}: "
                    "set tie_word_embeddings to false in the language model's config.json."
                )
            state[alias] = state[name]
        _check_state(model, state, where)
        model.load_state_dict(state, assign=True)
        for alias, name in model.aliases.items():  # assigning made parameters of their own
            owner, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(name))
        return model.eval().requires_grad_(False)

    @property
    def aliases(self) -> dict[str, str]:
        """Names in the state that are always, or in a tied model, another tensor."""
        shared = "language_model.shared.weight"
        aliases = {f"language_model.{part}.embed_tokens.weight": shared for part in ("encoder", "decoder")}
        if self.config.text_config.tie_word_embeddings:
            aliases["language_model.lm_head.weight"] = shared
        return aliases


def _build_t5(text: TextConfig) -> T5ForConditionalGeneration:
    config = T5Config(**{name: getattr(text, name) for name in TextConfig.__struct_fields__})
    model = T5ForConditionalGeneration(config)
    if not text.tie_word_embeddings:
        # transformers 5 ties the head whatever the config says; flan-T5 has a head of its own
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone() * text.d_model**-0.5)
    return model


def _check_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": [
            f"{k} {tuple(state[k].shape)}, expected {shape}"
            for k, shape in expected.items()
            if k in state and tuple(state[k].shape) != shape
        ],
    }
    found = [f"{len(names)} {kind}: {', '.join(names[:8])}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where} does not fit the configuration. Tensors " + "; ".join(found) + ".")
