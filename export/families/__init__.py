"""The families that can be exported: one line each, read without importing torch."""

from __future__ import annotations

import importlib

import msgspec

from edgevqa.export.spec import Family


class FamilyEntry(msgspec.Struct, frozen=True):
    """Where a family lives (`module:class`), what it is, and the `model_type`s of config.json that it loads."""

    location: str
    summary: str
    model_types: tuple[str, ...]
    source: str


FAMILIES: dict[str, FamilyEntry] = {
    "qavit_t5": FamilyEntry(
        "edgevqa.export.families.qavit_t5:QAViTT5",
        "QA-ViT: question-aware CLIP, projector and T5",
        ("qavit_t5",),
        "Question Aware Vision Transformer for Multimodal Reasoning, CVPR 2024",
    ),
    "llava": FamilyEntry(
        "edgevqa.export.families.llava:Llava",
        "LLaVA-1.5: vision tower, projector, decoder-only language model",
        ("llava",),
        "Improved Baselines with Visual Instruction Tuning, CVPR 2024",
    ),
    "vit": FamilyEntry(
        "edgevqa.export.families.vit:ViT",
        "ViT: image classification",
        ("vit",),
        "An Image is Worth 16x16 Words, ICLR 2021",
    ),
}


def family(name: str) -> Family:
    """The family `name`; imports its module (and torch) only now."""
    module, _, attribute = FAMILIES[name].location.partition(":")
    loaded: Family = getattr(importlib.import_module(module), attribute)()
    return loaded
