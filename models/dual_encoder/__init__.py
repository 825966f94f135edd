"""Dual encoders for image-text matching: ViT or ResNet and BERT, with any fusion mechanism between them."""

from edgevqa.models.dual_encoder.config import DualEncoderConfig
from edgevqa.models.dual_encoder.model import DualEncoder, Matched
from edgevqa.models.fusion import FusionConfig

__all__ = ["DualEncoder", "DualEncoderConfig", "FusionConfig", "Matched"]
