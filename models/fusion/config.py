"""The configuration that every fusion mechanism is built from."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.errors import ConfigError

_LEAST = {"image_width": 1, "text_width": 1, "width": 1, "heads": 1, "expansion": 1, "neighbours": 0}


class FusionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration for all mechanisms; each reads what it needs. Widths are in features.

    `mechanism` is a name of `FUSIONS`. `image_width` and `text_width` are those of the states that come in, `width` that of
    what goes out. `heads` are attention heads; `expansion` is how many times wider than `width` a feed-forward layer is
    inside; `neighbours` are the places on each side that the middle level of the hierarchical mechanisms takes together;
    `temperature` is what `coordinated` starts to divide its cosines by.
    """

    mechanism: str
    image_width: int
    text_width: int
    width: int
    heads: int = 4
    expansion: int = 4
    neighbours: int = 1
    temperature: float = 0.07
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least {least} is needed.")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.heads} heads.")
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; a number above 0 is needed.")
