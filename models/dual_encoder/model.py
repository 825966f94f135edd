"""A dual encoder for image-text matching, in eager PyTorch: two towers, a fusion mechanism, and a head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgevqa.models.dual_encoder import towers
from edgevqa.models.dual_encoder.config import DualEncoderConfig, read_config
from edgevqa.models.dual_encoder.towers import TEXT, VISION, TextTower, VisionTower
from edgevqa.models.fusion import Coordinated, Fusion, MatchingHead, build_fusion
from edgevqa.runtime.errors import CheckpointError, ConfigError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a forward pass gives, each None where the mechanism has none.

    `image_embeds` (image, width) and `text_embeds` (batch, width) have length 1, `similarity` (image, batch) are their
    scaled cosines. `image_states` (image, tokens, width) are what the head sees of the picture; `match_logits` (batch, 2)
    say no and yes.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    similarity: Tensor | None = None
    image_states: Tensor | None = None
    match_logits: Tensor | None = None


class DualEncoder(nn.Module):
    """Image-text matching with any mechanism of `edgevqa.models.fusion`."""

    def __init__(self, config: DualEncoderConfig, *, vision: Any = None, text: Any = None) -> None:
        """`vision` and `text` are models of transformers to take over; random ones where None. Raises `ConfigError`."""
        super().__init__()
        self.config = config
        self.vision = VisionTower(
            towers.build(VISION, config.vision_config, what="vision") if vision is None else vision
        )
        self.text = TextTower(towers.build(TEXT, config.text_config, what="text") if text is None else text)
        fusion = config.fusion
        given, found = (fusion.image_width, fusion.text_width), (self.vision.width, self.text.width)
        if given != found:
            raise ConfigError(
                f"The fusion takes states of {given[0]} (image) and {given[1]} (text) features; the towers give "
                f"{found[0]} and {found[1]}."
            )
        if config.max_text_tokens > self.text.model.config.max_position_embeddings:
            raise ConfigError(
                f"max_text_tokens is {config.max_text_tokens}; the text model takes at most "
                f"{self.text.model.config.max_position_embeddings}."
            )
        self.fusion = build_fusion(fusion)
        self.head = None if config.coordinated else MatchingHead(fusion.width)

    @classmethod
    def from_towers(cls, vision: Path, text: Path, *, fusion: dict[str, Any], **settings: Any) -> DualEncoder:
        """Towers from folders of the hub's format, and a fusion with random weights, to be trained.

        `fusion` are fields of `FusionConfig` without the widths that the towers give; `settings` further ones of
        `DualEncoderConfig`. Raises `CheckpointError` and `ConfigError`.
        """
        seeing, reading = towers.load(VISION, vision, what="vision"), towers.load(TEXT, text, what="text")
        widths = {
            "image_width": towers.width_of(VISION, seeing.config),
            "text_width": towers.width_of(TEXT, reading.config),
        }
        config = {
            "vision_config": towers.plain_config(VISION, seeing),
            "text_config": towers.plain_config(TEXT, reading),
            "fusion": {**widths, **fusion},
            **({"image_size": seeing.config.image_size} if hasattr(seeing.config, "image_size") else {}),
            **settings,
        }
        try:
            return cls(msgspec.convert(config, DualEncoderConfig), vision=seeing, text=reading)
        except msgspec.ValidationError as error:
            raise ConfigError(f"The configuration cannot be used: {error}.") from error

    @property
    def coordinated(self) -> Coordinated:
        """The fusion of a model whose modalities are embedded apart."""
        if not isinstance(self.fusion, Coordinated):
            raise ConfigError(f"The mechanism '{self.config.fusion.mechanism}' embeds no modality by itself.")
        return self.fusion

    @property
    def mixing(self) -> Fusion:
        """The fusion of a model whose head sees both modalities."""
        if not isinstance(self.fusion, Fusion):
            raise ConfigError(f"The mechanism '{self.config.fusion.mechanism}' has no matching head.")
        return self.fusion

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """(image, 3, height, width) to embeddings of length 1, (image, width)."""
        return self.coordinated.embed_image(self.vision(pixel_values))

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, words) to embeddings of length 1, (batch, width)."""
        return self.coordinated.embed_text(self.text(input_ids, attention_mask), attention_mask)

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """What is computed once a picture: (image, 3, height, width) to (image, tokens, width)."""
        return self.mixing.project_image(self.vision(pixel_values))

    def match(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (batch, 2) of no and yes; a single picture's states (1, tokens, width) go with every text."""
        if self.head is None:
            raise ConfigError(f"The mechanism '{self.config.fusion.mechanism}' has no matching head.")
        text = self.mixing.project_text(self.text(input_ids, attention_mask))
        image = image_states.expand(input_ids.shape[0], -1, -1)
        image, text = self.mixing.mix(image, text, None, attention_mask)
        logits: Tensor = self.head(image, text, None, attention_mask)
        return logits

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Matched:
        """Compare pictures (image, 3, height, width) with texts (batch, words).

        Coordinated models compare every picture with every text; others each row's picture, or a single one, with its text.
        """
        if self.config.coordinated:
            image, text = self.image_embeds(pixel_values), self.text_embeds(input_ids, attention_mask)
            similarity = self.coordinated.scale() * image @ text.T
            return Matched(image_embeds=image, text_embeds=text, similarity=similarity)
        states = self.image_states(pixel_values)
        return Matched(image_states=states, match_logits=self.match(states, input_ids, attention_mask))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(CONFIG_NAME).write_bytes(
            msgspec.json.format(msgspec.json.encode(self.config), indent=2) + b"\n"
        )
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        folder.joinpath(WEIGHTS_NAME).chmod(0o644)  # safetensors makes it unreadable to others

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DualEncoder:
        """Load a folder that `save_pretrained` wrote, in float32 and eval mode. Raises `CheckpointError`, `ConfigError`."""
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not folder.joinpath(name).is_file():
                raise CheckpointError(f"{folder} has no {name}; a dual encoder holds {CONFIG_NAME} and {WEIGHTS_NAME}.")
        model = cls(read_config(folder / CONFIG_NAME))
        try:
            state = load_file(folder / WEIGHTS_NAME)
        except Exception as error:  # safetensors raises its own, unexported type
            raise CheckpointError(f"{folder / WEIGHTS_NAME} cannot be read: {error}.") from error
        _check_state(model, state, str(folder / WEIGHTS_NAME))
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, assign=True)
        return model.eval().requires_grad_(False)


def _check_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Raises `CheckpointError` that names missing, unexpected and misshapen tensors."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(k for k, shape in expected.items() if k in state and tuple(state[k].shape) != shape),
    }
    found = [f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where} does not fit the configuration. Tensors " + "; ".join(found) + ".")
