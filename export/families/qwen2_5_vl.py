"""Qwen2.5-VL: pictures at their own resolution, a vision transformer with windows, and a decoder with M-RoPE.

Source: Qwen2.5-VL Technical Report (2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from edgevqa.export import assets
from edgevqa.export.answers import expand, generated_answers, greedy
from edgevqa.export.components.llama import LlamaDecoder, max_context
from edgevqa.export.components.qwen_vision import PatchMerger, QwenVision
from edgevqa.export.families.qwen2_5_vl_cases import qwen_cases
from edgevqa.export.generation import generation_spec
from edgevqa.export.pretrained import load_pretrained, model_info, source_spec
from edgevqa.export.processors import RESAMPLES, load_image_processor, values
from edgevqa.export.prompts import picture_separator, prompt_template
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Tokenized
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.preprocessing.qwen2_vl import PatchSettings, layout, settings_of, target_size

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "PICTURES{question}<|im_end|>\n<|im_start|>assistant\n"
)
PICTURE = "<|vision_start|>IMAGE<|vision_end|>"
MAX_QUESTION_TOKENS = 128
USUAL_SIZE = (480, 640)  # height and width of a usual picture, in pixels
ENGINE_PATCHES = (
    5120  # a megapixel: engines are built for no more unless told (--axis), for attention to all takes its square
)


class Qwen25VL:
    """The family `qwen2_5_vl`: `vision`, `projector`, `language_decoder`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        model = load_pretrained(Qwen2_5_VLForConditionalGeneration, source.path)
        text = model.config.text_config
        tokenizer, image_token = assets.tokenizer_bytes(source.path), model.config.image_token_id
        picture = PICTURE.replace("IMAGE", assets.token_of(tokenizer, image_token))
        prompts = PROMPT.replace("PICTURES", picture), PROMPT.replace("PICTURES", picture * 2)
        image = msgspec.structs.replace(
            image_spec(source.path, model.config.vision_config),
            separator=picture_separator(source.path, tokenizer, image_token_id=image_token, defaults=prompts),
        )
        context = max_context(text)
        check_windows(text, context)
        # pictures take fewer positions than places: the tables of positions bound what is written, not what is seen
        longest = min(context + (image.tokens or 0), text.max_position_embeddings)
        generation = msgspec.structs.replace(generation_spec(model, max_context=longest), max_positions=context)
        spec = assets.text_spec(
            tokenizer,
            cleaning="none",
            max_tokens=MAX_QUESTION_TOKENS,
            pad_token_id=generation.pad_token_id,
            eos_token_id=generation.eos_token_id,
            vocab_size=text.vocab_size,
            template=prompt_template(source.path, default=prompts[0]),
            image_token_id=image_token,
        )
        return Loaded(
            model=model,
            task="visual-question-answering",
            pipeline="decoder_only",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=image,
            text=Tokenized(data=tokenizer, spec=spec),
            generation=generation,
        )

    def plans(self, loaded: Loaded) -> Plans:
        model, settings = loaded.model, settings_of(loaded.required_image)
        visual, language = model.model.visual, model.model.language_model
        sections = language.rotary_emb.mrope_section
        return {
            "vision": lambda: vision_plan(visual, settings),
            "projector": lambda: projector_plan(visual, settings),
            "language_decoder": LlamaDecoder(language, model.lm_head, sections=sections).plan,
        }

    def cases(self, loaded: Loaded) -> Iterator[Case]:
        return qwen_cases(loaded)

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return generated_answers(loaded, generate)


def image_spec(folder: Path, vision: Any) -> ImageSpec:
    """The folder's processor. Raises `CheckpointError` where it does not cut pictures as the model takes them."""
    processor = load_image_processor(folder)
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    taken = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if not processor.do_resize or cut != taken:
        raise CheckpointError(
            f"The image processor of {folder} cuts pictures into patches of {cut[0]} pixels, merges {cut[1]} a side and "
            f"repeats them {cut[2]} times, {'with' if processor.do_resize else 'without'} resizing; the model takes "
            f"{taken[0]}, {taken[1]} and {taken[2]}, resized."
        )
    settings = PatchSettings(
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        frames=vision.temporal_patch_size,
        window=vision.window_size // vision.spatial_merge_size // vision.patch_size * vision.spatial_merge_size,
        least_pixels=int(processor.size["shortest_edge"]),
        most_pixels=int(processor.size["longest_edge"]),
    )
    height, width = target_size(*USUAL_SIZE, settings)
    return ImageSpec(
        height=height,
        width=width,
        resize=None,
        crop=None,
        resample=RESAMPLES[int(processor.resample)],
        processor="qwen2_vl",
        settings=msgspec.structs.asdict(settings),
        tokens=settings.most_patches // settings.merge**2,
        axes=axes(settings, height, width),
        **values(processor),
    )


def axes(settings: PatchSettings, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Least, usual and most of the vision graph's axes; the usual picture's height and width in pixels."""
    high, wide = height // settings.patch, width // settings.patch
    usual = high * wide
    most = max(usual, min(settings.most_patches, ENGINE_PATCHES))
    windows = math.ceil(high / settings.window) * math.ceil(wide / settings.window)
    # h x w windows, whole or cut, are at most hw + h + w + 1 of their full size; (h + w)² < 304 hw in the thinnest picture
    full = math.ceil(most / settings.window**2)
    patches = (settings.merge**2, usual, most)
    return {
        "patches": patches,
        "longest": patches,
        "windows": (1, windows, max(windows, full + math.isqrt(304 * full) + 2)),
        "frames": (1, 1, 1),
    }


def check_windows(text: Any, context: int) -> None:
    """Raises `CheckpointError` for a decoder whose layers see less than the whole prompt, which the graph does not do."""
    if "sliding_attention" in text.layer_types and (text.sliding_window or context) < context:
        raise CheckpointError(
            f"Layers of the decoder see only the last {text.sliding_window} tokens (use_sliding_window); the exported "
            "decoder sees the whole prompt. Expected a checkpoint without sliding windows, as the published ones are."
        )


def vision_plan(visual: Any, settings: PatchSettings) -> GraphPlan:
    """The graph `vision`."""
    step = settings.merge
    inputs = layout([(4 * step, 3 * step), (2 * step, 5 * step)], settings)
    patches = torch.randn(22 * step**2, visual.patch_embed.proj.weight[0].numel())
    axes = {
        "patch_positions": {0: "patches"},
        "window_patches": {0: "windows"},
        "window_places": {0: "patches"},
        "frame_patches": {0: "frames", 1: "longest"},
        "frame_places": {0: "patches"},
    }
    return GraphPlan(
        name="vision",
        module=QwenVision(visual, longest_side=settings.longest_side),
        args=(patches, *(torch.from_numpy(inputs[name]) for name in axes)),
        dynamic_shapes=({0: "patches"}, *axes.values()),
        input_names=["pixel_values", *axes],
        output_names=["image_states"],
    )


def projector_plan(visual: Any, settings: PatchSettings) -> GraphPlan:
    """The graph `projector`."""
    together = settings.merge**2
    return GraphPlan(
        name="projector",
        module=PatchMerger(visual.merger, together=together),
        args=(torch.randn(1, 6 * together, visual.merger.ln_q.weight.shape[0]),),
        dynamic_shapes=({1: "patches"},),
        input_names=["image_states"],
        output_names=["image_embeds"],
        relabel={f"(patches//{together})": "slots", f"patches//{together}": "slots"},
    )


def generate(loaded: Loaded, prepared: Prepared, ids: Sequence[int]) -> Tensor:
    """The eager model's answer (1, length)."""
    frames, high, wide = prepared.grid or (0, 0, 0)
    merge = settings_of(loaded.required_image).merge
    token = loaded.model.config.image_token_id
    prompt = expand(ids, prepared, image_token=token, slots=frames * high * wide)
    found = greedy(
        loaded.model,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=torch.from_numpy(prepared.inputs["pixel_values"]),
        image_grid_thw=torch.tensor([[frames, high * merge, wide * merge]]),
        mm_token_type_ids=(prompt == token).int(),
    )
    return found[:, prompt.shape[1] :]
