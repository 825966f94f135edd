"""The configuration of a QA-ViT: vision, text, where the question enters, and the checks that keep it possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.errors import ConfigError

INTEGRATION_POINTS = ("all", "early", "late", "late2", "late3", "sparse", "none")


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, keyword-only, and strict."""


class VisionConfig(_Config, frozen=True, kw_only=True):
    """A CLIP vision transformer; lengths in pixels, widths in features. The names are those of `CLIPVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed.")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads.")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")

    @property
    def tokens(self) -> int:
        """CLS and patches."""
        return (self.image_size // self.patch_size) ** 2 + 1


class TextConfig(_Config, frozen=True, kw_only=True):
    """A T5 encoder-decoder; the names are those of `T5Config`. `tie_word_embeddings` is what the checkpoint really does."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    feed_forward_proj: str = "gated-gelu"
    tie_word_embeddings: bool = False
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0


class QAViTConfig(_Config, frozen=True, kw_only=True):
    """A whole QA-ViT.

    `vision_layer` selects the hidden state that the language model sees: 0 is the embeddings, -1 the last layer
    (post_layernorm is never applied). `question_embedding` says whether the question path has an embedding of its
    own (LoRA on T5's `shared` acts on that path alone) or uses T5's.
    """

    model_type: str = "qavit_t5"
    vision_config: VisionConfig
    text_config: TextConfig
    integration_point: str = "late"
    vision_layer: int = -1
    projector_layers: int = 2
    question_embedding: bool = True
    max_question_tokens: int = 30
    max_new_tokens: int = 30

    def __post_init__(self) -> None:
        if self.model_type != "qavit_t5":
            raise ConfigError(f"model_type is '{self.model_type}'; this loader reads 'qavit_t5'.")
        if self.integration_point not in INTEGRATION_POINTS:
            raise ConfigError(
                f"integration_point '{self.integration_point}' is unknown; use one of {', '.join(INTEGRATION_POINTS)}."
            )
        if self.projector_layers < 1:
            raise ConfigError(f"projector_layers is {self.projector_layers}; at least 1 is needed.")
        states = self.vision_config.num_hidden_layers + 1
        if not -states <= self.vision_layer < states:
            raise ConfigError(
                f"vision_layer {self.vision_layer} is outside the {states} hidden states of the vision model."
            )

    @property
    def layers_used(self) -> int:
        """How many vision layers run to reach the selected hidden state."""
        states = self.vision_config.num_hidden_layers + 1
        return self.vision_layer % states

    @property
    def fused(self) -> tuple[int, ...]:
        """Indices of the layers that run and attend to the question."""
        layers = fused_layers(self.integration_point, self.vision_config.num_hidden_layers)
        return tuple(i for i in layers if i < self.layers_used)

    @property
    def trunk_layers(self) -> int:
        """How many layers lie below the first fused one, and so never see the question."""
        return self.fused[0] if self.fused else self.layers_used


def fused_layers(integration_point: str, layers: int) -> tuple[int, ...]:
    """Indices of the vision layers that attend to the question (Question Aware Vision Transformer, CVPR 2024)."""
    starts = {"all": 0, "late": layers // 2, "late2": 3 * layers // 4, "late3": layers // 4, "none": layers}
    if integration_point == "early":
        return tuple(range(layers // 2))
    if integration_point == "sparse":
        return tuple(range(0, layers, 2))
    if integration_point not in starts:
        raise ConfigError(
            f"integration_point '{integration_point}' is unknown; use one of {', '.join(INTEGRATION_POINTS)}."
        )
    return tuple(range(starts[integration_point], layers))


def read_config(path: Path) -> QAViTConfig:
    """Read `config.json` of our own format. Raises `ConfigError` naming the file and the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=QAViTConfig)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a QA-ViT configuration: {error}.") from error


def vision_config_from_clip(clip: Any) -> VisionConfig:
    """The fields that the graphs need, from a transformers `CLIPVisionConfig`."""
    return msgspec.convert({name: getattr(clip, name) for name in VisionConfig.__struct_fields__}, VisionConfig)


def text_config_from_t5(t5: dict[str, Any]) -> TextConfig:
    """From the raw `config.json` of a T5 (a T5Config object forgets whether the embeddings are tied)."""
    known = {name: t5[name] for name in TextConfig.__struct_fields__ if name in t5}
    if known.get("num_decoder_layers") is None:
        known["num_decoder_layers"] = t5["num_layers"]
    known.setdefault("feed_forward_proj", "relu")
    known.setdefault("tie_word_embeddings", True)
    known.setdefault("decoder_start_token_id", t5.get("pad_token_id", 0))
    return msgspec.convert(known, TextConfig)
