"""QA-ViT: a CLIP vision transformer that also attends to the question, a projector, and a T5 language head."""

from edgevqa.models.qavit.config import INTEGRATION_POINTS, QAViTConfig, TextConfig, VisionConfig, fused_layers
from edgevqa.models.qavit.model import QAViTForVQA

__all__ = ["INTEGRATION_POINTS", "QAViTConfig", "QAViTForVQA", "TextConfig", "VisionConfig", "fused_layers"]
