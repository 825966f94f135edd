"""Joint: picture and text are brought to one space and concatenated; the head after it does the rest."""

from __future__ import annotations

from torch import Tensor, nn

from edgevqa.models.fusion.base import Fusion


class Joint(Fusion):
    """A Linear for each modality, and nothing between them before the head concatenates them."""

    def entry(self, width: int) -> nn.Module:
        return nn.Linear(width, self.config.width)

    def mix(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return image, text
