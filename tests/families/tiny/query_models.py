"""What small BLIP-2 and InstructBLIP models have in common: their parts' configurations, and weights that matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SIZE, QUERIES = 32, 5


def vision_values() -> dict[str, Any]:
    """Of the vision tower: ten tokens a picture would be too square, so 17."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }


def qformer_values(vocab_size: int = 64) -> dict[str, Any]:
    """Of the Q-Former: the layer in the middle reads no picture."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "cross_attention_frequency": 2,
        "hidden_dropout_prob": 0.0,
    }


def text_values(tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    """Of each language model, by its `model_type`."""
    rows = len(tokenizer) + 3  # tables are larger than vocabularies
    return {
        "opt": {
            "vocab_size": rows,
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 128,
            "eos_token_id": 7,  # BLIP-2's OPT ends with a line break, not with </s>
        },
        "t5": {
            "vocab_size": rows,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "bos_token_id": 1,
        },
        "llama": {
            "vocab_size": rows,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
        },
    }


def shake(model: torch.nn.Module, *, matrices: float = 0.4) -> None:
    """Random numbers in place of zeros and ones: fresh models have no queries, biases or class token to speak of.

    `matrices` is the size of the weights of Linear layers; T5, which scales no scores, wants smaller ones.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            large = 0.5 if parameter.ndim < 2 or "query_tokens" in name or "embedding" in name else matrices
            if "embed_tokens" in name:  # small, or a tied head repeats its input for ever
                large = 0.1
            base = parameter if name.lower().endswith("norm.weight") else 0.0
            parameter.copy_(base + large * torch.randn(parameter.shape, generator=generator))


def save_image_processor(folder: Path) -> None:
    """BLIP's own, for small pictures."""
    BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids of some tokens."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


def processed(folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
    """What the folder's image processor makes of a picture."""
    processor = BlipImageProcessorPil.from_pretrained(folder)
    return {"pixel_values": processor(rgb, return_tensors="np")["pixel_values"]}
