"""Small random dual encoders of our own, saved with tokenizer and processor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevqa.models.dual_encoder import DualEncoder, DualEncoderConfig, FusionConfig
from edgevqa.models.fusion import FUSIONS
from tests.families.tiny.tokenizers import bert_tokenizer

SIZE = 32
VISION: dict[str, dict[str, Any]] = {
    "vit": {
        "model_type": "vit",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
TEXT_WIDTH = 24
TEXT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}


def dual_encoder(
    mechanism: str, *, vision: str = "vit", vocab_size: int = 400, layers: int = 2, **settings: Any
) -> DualEncoder:
    """A random model whose norms and biases are not what they start as; `settings` are fields of the configuration."""
    torch.manual_seed(0)
    fusion = FusionConfig(mechanism=mechanism, image_width=32, text_width=TEXT_WIDTH, width=32, heads=4)
    text = {**TEXT, "vocab_size": vocab_size, "num_hidden_layers": layers}
    given: dict[str, Any] = {"image_size": SIZE, "max_text_tokens": 32, **settings}
    model = DualEncoder(DualEncoderConfig(vision_config=VISION[vision], text_config=text, fusion=fusion, **given))
    with torch.no_grad():
        torch.manual_seed(1)  # the towers of all mechanisms are the same
        _unsettle([*model.vision.named_parameters(), *model.vision.named_buffers(), *model.text.named_parameters()])
        torch.manual_seed(2 + list(FUSIONS).index(mechanism))
        after = [each for each in model.named_parameters() if each[0].startswith(("fusion.", "head."))]
        _unsettle(after)
        for _, value in after:
            if value.ndim == 2:  # so that attention is not flat, and no two mechanisms have the same weights
                value.mul_(2.0).add_(torch.randn_like(value) * 0.05)
    return model.eval()


def _unsettle(values: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, value in values:
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.ndim == 1 and value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.1)


def save_dual_encoder(folder: Path, mechanism: str, **settings: Any) -> None:
    """Save a random model with all its files into `folder`; `settings` are those of `dual_encoder`."""
    tokenizer = bert_tokenizer()
    dual_encoder(mechanism, vocab_size=len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
