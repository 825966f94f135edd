"""What every fusion mechanism is: states of a picture and of a text in, states of both out."""

from __future__ import annotations

from torch import Tensor, nn

from edgevqa.models.fusion.attention import key_bias
from edgevqa.models.fusion.config import FusionConfig


class Fusion(nn.Module):
    """Takes the states of a vision and of a language model; a mechanism says in `mix` how they learn of each other.

    Masks are 1 where a place is seen and 0 where it is padding; None shows every place. A row's result does not depend on
    its padding, except in the padded places themselves.
    """

    def __init__(self, config: FusionConfig) -> None:
        """States of another width than `config.width` go through a Linear first: nothing can be multiplied otherwise."""
        super().__init__()
        self.config = config
        self.image_in = self.entry(config.image_width)
        self.text_in = self.entry(config.text_width)

    def entry(self, width: int) -> nn.Module:
        """What brings states from `width` features to those of the mechanism."""
        return nn.Identity() if width == self.config.width else nn.Linear(width, self.config.width)

    def project_image(self, states: Tensor) -> Tensor:
        """What depends on the picture alone: (image, tokens, image_width) to (image, tokens, width)."""
        projected: Tensor = self.image_in(states)
        return projected

    def project_text(self, states: Tensor) -> Tensor:
        """What depends on the text alone: (batch, words, text_width) to (batch, words, width)."""
        projected: Tensor = self.text_in(states)
        return projected

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Projected image (batch, tokens, width) and text (batch, words, width) to the same, each knowing of the other."""
        raise NotImplementedError

    def forward(
        self,
        image_states: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(batch, tokens, image_width) and (batch, words, text_width) to (batch, tokens, width) and (batch, words, width)."""
        return self.mix(self.project_image(image_states), self.project_text(text_states), image_mask, text_mask)


class TwoDirections(Fusion):
    """Text reads the picture and the picture reads the text, both as they came in; what was read is added."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.text_reads_image = self.reader()
        self.image_reads_text = self.reader()

    def reader(self) -> nn.Module:
        """One direction: called with states (batch, queries, width), the other's (batch, keys, width), and a bias."""
        raise NotImplementedError

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return (
            image + self.image_reads_text(image, text, bias_of(text_mask)),
            text + self.text_reads_image(text, image, bias_of(image_mask)),
        )


class NormalizedDirections(TwoDirections):
    """As `TwoDirections`, and the sum is normalised (post-LN)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.image_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        image, text = super().mix(image, text, image_mask, text_mask)
        return self.image_norm(image), self.text_norm(text)


def bias_of(mask: Tensor | None) -> Tensor | None:
    """The additive bias of a mask, where there is one."""
    return None if mask is None else key_bias(mask)
