"""The reference model's recipe: sizes, data mix and optimiser, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from edgevqa.models.qavit import QAViTConfig, TextConfig, VisionConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VALIDATION_PICTURES = 100  # the last pictures of easy-vqa's training split, never trained on
TEST_SCENES_SEED, VALIDATION_SCENES_SEED = 7, 11


# How often training asks each type: more often than the data set what is hard to learn.
SCENE_TYPE_WEIGHTS = {
    "color": 0.4,
    "shape": 0.4,
    "existence": 0.6,
    "count": 1.2,
    "position": 1.2,
    "relation": 3.0,
    "neighbour": 1.0,
    "comparison": 2.0,
    "equality": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one training run is made of. `minutes` is the longest the schedule may take: it is compressed to fit."""

    seed: int = 2024
    steps: int = 10_000
    minutes: float | None = None
    real_pictures: int = 10  # easy-vqa's training split, augmented, per step
    single_pictures: int = 18  # generated, one shape, easy-vqa's questions
    scene_pictures: int = 20  # generated, several shapes
    single_questions: int = 2  # per easy-vqa or one-shape picture
    scene_questions: int = 4
    patch_weight: float = 0.5  # of what patches show and are asked about; falls with the schedule to a tenth
    summary_from: int = 300  # step at which the class token starts to say where and how many; with the same weight
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    weight_decay: float = 0.03
    gradient_norm: float = 1.0


def model_config(vocabulary: int) -> QAViTConfig:
    """The reference model: six vision layers of which the upper three see the question, and a two-by-two T5."""
    return QAViTConfig(
        vision_config=VisionConfig(
            hidden_size=160,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=5,
            image_size=64,
            patch_size=8,
        ),
        text_config=TextConfig(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        ),
        integration_point="late",
        max_new_tokens=8,
    )
