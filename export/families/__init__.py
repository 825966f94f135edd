"""The families that can be exported: one line each, read without importing torch."""

from __future__ import annotations

import importlib

import msgspec

from edgevqa.export.spec import Family


class FamilyEntry(msgspec.Struct, frozen=True):
    """Where a family lives (`module:class`), what it is, and the `model_type`s of config.json that it loads.

    `tasks` are what its bundles are for (`manifest.task`), `architectures` those of config.json that it tells apart; empty
    where they are not told.
    """

    location: str
    summary: str
    model_types: tuple[str, ...]
    source: str
    tasks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


FAMILIES: dict[str, FamilyEntry] = {
    "qavit_t5": FamilyEntry(
        "edgevqa.export.families.qavit_t5:QAViTT5",
        "QA-ViT: question-aware CLIP, projector and T5",
        ("qavit_t5",),
        "Question Aware Vision Transformer for Multimodal Reasoning, CVPR 2024",
        tasks=("visual-question-answering",),
    ),
    "llava": FamilyEntry(
        "edgevqa.export.families.llava:Llava",
        "LLaVA-1.5: vision tower, projector, decoder-only language model",
        ("llava",),
        "Improved Baselines with Visual Instruction Tuning, CVPR 2024",
        tasks=("visual-question-answering",),
        architectures=("LlavaForConditionalGeneration",),
    ),
    "blip2": FamilyEntry(
        "edgevqa.export.families.blip2:Blip2",
        "BLIP-2: vision tower, Q-Former, OPT or Flan-T5; image-text matching and retrieval",
        ("blip-2",),
        "BLIP-2: Bootstrapping Language-Image Pre-training, ICML 2023",
        tasks=("visual-question-answering", "image-text-matching"),
        architectures=("Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval"),
    ),
    "instructblip": FamilyEntry(
        "edgevqa.export.families.instructblip:InstructBlip",
        "InstructBLIP: a Q-Former that reads the question, Flan-T5 or Vicuna",
        ("instructblip",),
        "InstructBLIP: Towards General-purpose Vision-Language Models, NeurIPS 2023",
        tasks=("visual-question-answering",),
        architectures=("InstructBlipForConditionalGeneration",),
    ),
    "blip": FamilyEntry(
        "edgevqa.export.families.blip:Blip",
        "BLIP: answers, captions, image-text matching",
        ("blip",),
        "BLIP: Bootstrapping Language-Image Pre-training, ICML 2022",
        tasks=("visual-question-answering", "image-captioning", "image-text-matching"),
        architectures=("BlipForQuestionAnswering", "BlipForConditionalGeneration", "BlipForImageTextRetrieval"),
    ),
    "qwen2_5_vl": FamilyEntry(
        "edgevqa.export.families.qwen2_5_vl:Qwen25VL",
        "Qwen2.5-VL: window attention at any resolution, decoder with M-RoPE",
        ("qwen2_5_vl",),
        "Qwen2.5-VL Technical Report, 2025",
        tasks=("visual-question-answering",),
        architectures=("Qwen2_5_VLForConditionalGeneration",),
    ),
    "smolvlm": FamilyEntry(
        "edgevqa.export.families.smolvlm:SmolVLM",
        "SmolVLM, Idefics3: tiled pictures, pixel shuffle, small Llama-like decoder",
        ("smolvlm", "idefics3"),
        "SmolVLM: Redefining small and efficient multimodal models, 2025",
        tasks=("visual-question-answering",),
        architectures=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    ),
    "llava_next": FamilyEntry(
        "edgevqa.export.families.llava_next:LlavaNext",
        "LLaVA-NeXT (1.6): LLaVA on tiles of the resolution that fits the picture",
        ("llava_next",),
        "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge, 2024",
        tasks=("visual-question-answering",),
        architectures=("LlavaNextForConditionalGeneration",),
    ),
    "clip": FamilyEntry(
        "edgevqa.export.families.clip:Clip",
        "CLIP: embeddings of pictures and texts, zero-shot classification, search",
        ("clip",),
        "Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
        tasks=("image-text-similarity",),
        architectures=("CLIPModel",),
    ),
    "siglip": FamilyEntry(
        "edgevqa.export.families.siglip:Siglip",
        "SigLIP: embeddings of pictures and texts, a probability for every pair, search",
        ("siglip",),
        "Sigmoid Loss for Language Image Pre-Training, ICCV 2023",
        tasks=("image-text-similarity",),
        architectures=("SiglipModel",),
    ),
    "qavit_llava": FamilyEntry(
        "edgevqa.export.families.qavit_hosts:QAViTLlava",
        "QA-ViT fusion in the vision tower of LLaVA-1.5",
        ("qavit_llava",),
        "Question Aware Vision Transformer for Multimodal Reasoning, CVPR 2024",
        tasks=("visual-question-answering",),
    ),
    "qavit_blip2": FamilyEntry(
        "edgevqa.export.families.qavit_hosts:QAViTBlip2",
        "QA-ViT fusion in the vision tower of BLIP-2",
        ("qavit_blip2",),
        "Question Aware Vision Transformer for Multimodal Reasoning, CVPR 2024",
        tasks=("visual-question-answering",),
    ),
    "qavit_instructblip": FamilyEntry(
        "edgevqa.export.families.qavit_hosts:QAViTInstructBlip",
        "QA-ViT fusion in the vision tower of InstructBLIP",
        ("qavit_instructblip",),
        "Question Aware Vision Transformer for Multimodal Reasoning, CVPR 2024",
        tasks=("visual-question-answering",),
    ),
    "vision_encoder_decoder": FamilyEntry(
        "edgevqa.export.families.vision_encoder_decoder:VisionEncoderDecoder",
        "ViT + GPT-2: captions",
        ("vision-encoder-decoder",),
        "Language Models are Unsupervised Multitask Learners, 2019, with the cross-attention of transformers",
        tasks=("image-captioning",),
        architectures=("VisionEncoderDecoderModel",),
    ),
    "vit": FamilyEntry(
        "edgevqa.export.families.vit:ViT",
        "ViT: image classification, features",
        ("vit",),
        "An Image is Worth 16x16 Words, ICLR 2021",
        tasks=("image-classification", "image-feature-extraction"),
        architectures=("ViTForImageClassification", "ViTModel"),
    ),
    "vilt": FamilyEntry(
        "edgevqa.export.families.vilt:ViLT",
        "ViLT: answers from a list, image-text matching",
        ("vilt",),
        "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision, ICML 2021",
        tasks=("visual-question-answering", "image-text-matching"),
        architectures=("ViltForQuestionAnswering", "ViltForImageAndTextRetrieval"),
    ),
    "dual_encoder": FamilyEntry(
        "edgevqa.export.families.dual_encoder:DualEncoders",
        "Dual encoder (ViT or ResNet, BERT) with joint, coordinated or cross-attended fusion: image-text matching",
        ("dual_encoder",),
        "the literature on multimodal fusion; definition in models/dual_encoder and models/fusion",
        tasks=("image-text-matching",),
    ),
    "cross_attention": FamilyEntry(
        "edgevqa.export.families.cross_attention:CrossAttentionModel",
        "Visual projection and two-way cross-attention between a vision and a language model: image-text matching",
        ("cross_attention",),
        "cross-modal projection and attention as published for VLMs; models/fusion/cross_attention.py",
        tasks=("image-text-matching",),
    ),
    "vit_mae": FamilyEntry(
        "edgevqa.export.families.vit_mae:ViTMAE",
        "MAE: features of a picture, reconstruction of masked patches",
        ("vit_mae",),
        "Masked Autoencoders Are Scalable Vision Learners, CVPR 2022",
        tasks=("image-feature-extraction",),
        architectures=("ViTMAEForPreTraining", "ViTMAEModel"),
    ),
    "perceiver": FamilyEntry(
        "edgevqa.export.families.perceiver:Perceiver",
        "Perceiver: image classification by an array of latents",
        ("perceiver",),
        "Perceiver IO: A General Architecture for Structured Inputs & Outputs, ICLR 2022",
        tasks=("image-classification",),
        architectures=(
            "PerceiverForImageClassificationLearned",
            "PerceiverForImageClassificationFourier",
            "PerceiverForImageClassificationConvProcessing",
        ),
    ),
}


def family(name: str) -> Family:
    """The family `name`; imports its module (and torch) only now."""
    module, _, attribute = FAMILIES[name].location.partition(":")
    loaded: Family = getattr(importlib.import_module(module), attribute)()
    return loaded
