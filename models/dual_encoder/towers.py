"""The towers of a dual encoder: a vision and a text model of transformers that give states, one row a kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from edgevqa.models.fusion.attention import key_bias
from edgevqa.runtime.errors import CheckpointError, ConfigError

_UNUSED = ("pooler.",)  # the towers give the states of every place; BERT's and ViT's poolers are left out


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of tower. `width` is the configuration's name of the states' width; `options` are for the model's class."""

    config: Any
    model: Any
    width: str
    options: dict[str, Any]


VISION: dict[str, Kind] = {
    "vit": Kind(config=ViTConfig, model=ViTModel, width="hidden_size", options={"add_pooling_layer": False}),
    "resnet": Kind(config=ResNetConfig, model=ResNetModel, width="hidden_sizes", options={}),
}
TEXT: dict[str, Kind] = {
    "bert": Kind(config=BertConfig, model=BertModel, width="hidden_size", options={"add_pooling_layer": False})
}


class VisionTower(nn.Module):
    """`pixel_values` (image, 3, height, width) to states (image, tokens, width)."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = width_of(VISION, model.config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.model(pixel_values).last_hidden_state
        if states.ndim == 4:  # a convolutional model's map (image, width, rows, columns)
            states = states.flatten(2).transpose(1, 2)
        return states


class TextTower(nn.Module):
    """`input_ids` and `attention_mask` (batch, words) to states (batch, words, width)."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = width_of(TEXT, model.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # an additive mask passes as it is; the one made of a flat mask holds float32's least number, which no FP16 has
        bias = key_bias(attention_mask)[:, None]  # (batch, 1, 1, words)
        states: Tensor = self.model(input_ids=input_ids, attention_mask=bias).last_hidden_state
        return states


def build(kinds: dict[str, Kind], given: dict[str, Any], *, what: str) -> Any:
    """The model that a configuration describes, with random weights and eager attention. Raises `ConfigError`."""
    kind = _kind(kinds, given.get("model_type"), what)
    config = kind.config()
    if unknown := sorted(set(given) - set(config.to_dict())):
        raise ConfigError(
            f"{what}_config has the unknown keys {', '.join(unknown)}; expected those of {kind.config.__name__}."
        )
    try:
        config = kind.config(**{name: value for name, value in given.items() if name != "model_type"})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}_config cannot be used: {error}.") from error
    config._attn_implementation = "eager"
    return kind.model(config, **kind.options)


def load(kinds: dict[str, Kind], folder: Path, *, what: str) -> Any:
    """The tower in a folder of the hub's format, in float32 with eager attention.

    Raises `CheckpointError` where the folder is of another kind, cannot be read or lacks weights.
    """
    from transformers import AutoConfig

    try:
        name = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        kind = _kind(kinds, name, what)
        model, found = kind.model.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            local_files_only=True,
            **kind.options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{folder} cannot be loaded as a {what} tower: {reason}") from error
    if missing := sorted(key for key in found["missing_keys"] if not str(key).startswith(_UNUSED)):
        raise CheckpointError(f"{folder} lacks weights of {kind.model.__name__}: {', '.join(missing[:5])}.")
    return model


def plain_config(kinds: dict[str, Kind], model: Any) -> dict[str, Any]:
    """A tower's configuration as JSON values: what differs from the kind's defaults, and its `model_type`."""
    config = model.config
    known = kinds[config.model_type].config().to_dict()
    given = {name: value for name, value in config.to_dict().items() if name in known and value != known[name]}
    given.pop("transformers_version", None)
    return {"model_type": config.model_type, **{name: value for name, value in given.items() if name != "dtype"}}


def width_of(kinds: dict[str, Kind], config: Any) -> int:
    """The width of a tower's states."""
    value = getattr(config, kinds[config.model_type].width)
    return int(value[-1] if isinstance(value, (list, tuple)) else value)


def _kind(kinds: dict[str, Kind], name: object, what: str) -> Kind:
    if name not in kinds:
        raise ConfigError(f"A {what} tower of model_type '{name}' is unknown; use one of {', '.join(kinds)}.")
    return kinds[str(name)]
