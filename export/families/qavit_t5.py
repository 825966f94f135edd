"""QA-ViT with a T5 head: question-aware CLIP, projector, encoder-decoder language model.

Source: Question Aware Vision Transformer for Multimodal Reasoning (CVPR 2024) and its published implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgevqa.export import assets
from edgevqa.export.components.t5 import LanguageDecoder, LanguageEncoder, QuestionEncoder
from edgevqa.export.components.vision import ImageProjector, VisionFusion, VisionTrunk
from edgevqa.export.families.qavit_t5_cases import answer_cases, cases
from edgevqa.export.samples import random_pixels, random_questions
from edgevqa.export.sources import Source, hash_files
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Tokenized
from edgevqa.export.weight_files import check_tensors
from edgevqa.models.qavit import QAViTForVQA
from edgevqa.models.qavit.model import CONFIG_NAME, WEIGHTS_NAME
from edgevqa.runtime.manifest import GenerationSpec, SourceSpec

BATCH, WORDS, CAPACITY = 2, 5, 8  # sizes to trace with; each of these axes is dynamic
Q_AXES = {0: "batch", 1: "words"}


class QAViTT5:
    """The family `qavit_t5`; see DESIGN's table of graphs."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        if source.config is not None:
            return _load_official(source, source.config)
        check_tensors(source.path / WEIGHTS_NAME)
        model = QAViTForVQA.from_pretrained(source.path)
        digest = hash_files([source.path / CONFIG_NAME, source.path / WEIGHTS_NAME])
        return _loaded(source, model, source.path, source.path, digest)

    def plans(self, loaded: Loaded) -> Plans:
        fused = loaded.model.config.fused
        names = [name for name in _PLANS if fused or name not in ("question_encoder", "vision_fusion")]
        return {name: partial(_PLANS[name], loaded.model) for name in names}

    def cases(self, loaded: Loaded) -> Iterator[Case]:
        return cases(loaded)

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return answer_cases(loaded)


def _load_official(source: Source, config: Path) -> Loaded:
    from edgevqa.models.qavit.official import load_official

    checkpoint = load_official(source.path, config, root=source.root)
    digest = hash_files([config, source.path])
    return _loaded(source, checkpoint.model, checkpoint.vision_folder, checkpoint.language_folder, digest)


def _loaded(source: Source, model: QAViTForVQA, vision: Path, language: Path, digest: str) -> Loaded:
    config, text = model.config, model.config.text_config
    tokenizer = assets.tokenizer_bytes(language)
    return Loaded(
        model=model,
        task="visual-question-answering",
        pipeline="encoder_decoder",
        image=assets.image_spec(vision, size=config.vision_config.image_size),
        text=Tokenized(
            data=tokenizer,
            spec=assets.text_spec(
                tokenizer,
                cleaning="qavit_question",
                max_tokens=config.max_question_tokens,
                pad_token_id=text.pad_token_id,
                eos_token_id=text.eos_token_id,
                vocab_size=text.vocab_size,
            ),
        ),
        generation=GenerationSpec(
            decoder_start_token_id=text.decoder_start_token_id,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
            max_new_tokens=config.max_new_tokens,
        ),
        source=SourceSpec(
            kind=source.kind,
            id=source.id,
            revision=source.revision,
            sha256=digest,
            parameters=sum(p.numel() for p in model.parameters()),
        ),
        model_info=_model_info(model),
    )


def _model_info(model: QAViTForVQA) -> dict[str, Any]:
    config = model.config
    return {**msgspec.to_builtins(config), "fused_layers": list(config.fused), "trunk_layers": config.trunk_layers}


def _trunk_plan(model: QAViTForVQA) -> GraphPlan:
    vision = model.config.vision_config
    pixels = random_pixels(BATCH, height=vision.image_size, width=vision.image_size, channels=vision.num_channels)
    return GraphPlan(
        name="vision_trunk",
        module=VisionTrunk(model.vision),
        args=(pixels,),
        dynamic_shapes=({0: "image"},),
        input_names=["pixel_values"],
        output_names=["trunk_states"],
    )


def _question_plan(model: QAViTForVQA) -> GraphPlan:
    embedding = model.question_embedding if model.config.question_embedding else None
    return GraphPlan(
        name="question_encoder",
        module=QuestionEncoder(model.language_model, embedding),
        args=_questions(model),
        dynamic_shapes=(Q_AXES, Q_AXES),
        input_names=["input_ids", "attention_mask"],
        output_names=["question_states"],
    )


def _fusion_plan(model: QAViTForVQA) -> GraphPlan:
    vision, text = model.config.vision_config, model.config.text_config
    trunk = torch.randn(1, vision.tokens, vision.hidden_size)
    return GraphPlan(
        name="vision_fusion",
        module=VisionFusion(model.vision),
        args=(trunk, torch.randn(BATCH, WORDS, text.d_model), _questions(model)[1]),
        dynamic_shapes=(None, Q_AXES, Q_AXES),
        input_names=["trunk_states", "question_states", "attention_mask"],
        output_names=["image_states"],
        free_axes={"trunk_states": {0: "image"}},
    )


def _projector_plan(model: QAViTForVQA) -> GraphPlan:
    vision = model.config.vision_config
    return GraphPlan(
        name="projector",
        module=ImageProjector(model.projector),
        args=(torch.randn(BATCH, vision.tokens, vision.hidden_size),),
        dynamic_shapes=({0: "batch"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
    )


def _encoder_plan(model: QAViTForVQA) -> GraphPlan:
    tokens, text = model.config.vision_config.tokens, model.config.text_config
    return GraphPlan(
        name="language_encoder",
        module=LanguageEncoder(model.language_model),
        args=(torch.randn(BATCH, tokens, text.d_model), *_questions(model)),
        dynamic_shapes=({0: "batch"}, Q_AXES, Q_AXES),
        input_names=["image_embeds", "input_ids", "attention_mask"],
        output_names=["encoder_hidden_states", "encoder_attention_mask", *_layer_names(model, "cross")],
        relabel={f"words + {tokens}": "keys", f"{tokens} + words": "keys"},
    )


def _decoder_plan(model: QAViTForVQA) -> GraphPlan:
    text, keys = model.config.text_config, model.config.vision_config.tokens + WORDS
    layers = text.num_decoder_layers

    def pairs(slots: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shape = (BATCH, text.num_heads, slots, text.d_kv)
        return [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]

    def axes(slots: str) -> list[tuple[dict[int, str], dict[int, str]]]:
        return [({0: "batch", 2: slots}, {0: "batch", 2: slots})] * layers

    ids, length = torch.zeros(BATCH, 1, dtype=torch.int64), torch.tensor([3])
    return GraphPlan(
        name="language_decoder",
        module=LanguageDecoder(model.language_model),
        args=(ids, length, pairs(CAPACITY), pairs(keys), torch.ones(BATCH, keys, dtype=torch.int64)),
        dynamic_shapes=({0: "batch"}, None, axes("capacity"), axes("keys"), {0: "batch", 1: "keys"}),
        input_names=[
            "decoder_input_ids",
            "cache_length",
            *_layer_names(model, "past"),
            *_layer_names(model, "cross"),
            "encoder_attention_mask",
        ],
        output_names=["logits", *_layer_names(model, "new")],
    )


def _questions(model: QAViTForVQA) -> tuple[torch.Tensor, torch.Tensor]:
    return random_questions(BATCH, WORDS, vocab_size=model.config.text_config.vocab_size)


def _layer_names(model: QAViTForVQA, prefix: str) -> list[str]:
    layers = range(model.config.text_config.num_decoder_layers)
    return [f"{prefix}_{part}.{layer}" for layer in layers for part in ("key", "value")]


_PLANS: dict[str, Callable[[QAViTForVQA], GraphPlan]] = {
    "vision_trunk": _trunk_plan,
    "question_encoder": _question_plan,
    "vision_fusion": _fusion_plan,
    "projector": _projector_plan,
    "language_encoder": _encoder_plan,
    "language_decoder": _decoder_plan,
}
