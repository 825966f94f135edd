"""The configuration of a dual encoder: two towers of transformers, and the fusion between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edgevqa.models.fusion import COORDINATED, FUSIONS, FusionConfig, check_mechanism
from edgevqa.runtime.errors import ConfigError

CROSS_ATTENTION = "cross_attention"


class DualEncoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole model.

    `vision_config` and `text_config` are those of transformers, each with its `model_type` (see `models/dual_encoder/
    towers.py` for the known ones). `image_size` is the side of the pictures in pixels; texts are at most
    `max_text_tokens` tokens long. The model type `cross_attention` stands for that fusion mechanism.
    """

    model_type: Literal["dual_encoder", "cross_attention"] = "dual_encoder"
    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    fusion: FusionConfig
    image_size: int
    max_text_tokens: int = 64

    def __post_init__(self) -> None:
        check_mechanism(self.fusion.mechanism)
        if self.model_type == CROSS_ATTENTION and self.fusion.mechanism != CROSS_ATTENTION:
            raise ConfigError(
                f"model_type is 'cross_attention' and the fusion mechanism '{self.fusion.mechanism}'; expected "
                f"'{CROSS_ATTENTION}'. model_type 'dual_encoder' takes any of {', '.join(FUSIONS)}."
            )
        for name, least in (("image_size", 1), ("max_text_tokens", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least {least} is needed.")
        given = self.vision_config.get("image_size", self.image_size)
        if given != self.image_size:
            raise ConfigError(f"image_size is {self.image_size}; the vision model's is {given}.")

    @property
    def coordinated(self) -> bool:
        """Whether picture and text are embedded apart and compared by their cosine."""
        return self.fusion.mechanism == COORDINATED


def read_config(path: Path) -> DualEncoderConfig:
    """Read a `config.json`. Raises `ConfigError` naming the file and the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DualEncoderConfig)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a dual encoder's configuration: {error}.") from error
