"""Make a folder with a QA-ViT checkpoint in the published format and random weights, to measure exporting at real sizes.

    python -m benchmarks.official_checkpoint FOLDER --clip large --t5 base

FOLDER gets `ckpt.pth`, `config.yaml`, and the base models' small files under `pretrained/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLIP: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"image_size": 56, "patch_size": 14},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"image_size": 224, "patch_size": 16},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"image_size": 336, "patch_size": 14},
}
T5: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4, "vocab_size": 300},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "vocab_size": 32128},
}
LORA_RANK, LORA_ALPHA = 16, 32
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def write(
    folder: Path,
    *,
    clip: str = "tiny",
    t5: str = "tiny",
    integration_point: str = "late",
    dtype: torch.dtype = torch.float32,
    flan: bool = True,
    lora: bool = True,
    tokenizer: Path | None = None,
) -> Path:
    """Write the folder; `flan` is T5 1.1 (gated GELU, a head of its own), else T5 1.0 (ReLU, tied). Returns `ckpt.pth`."""
    vision, text = CLIP[clip], {**T5[t5]}
    text["num_decoder_layers"] = text["num_layers"]
    _write_bases(folder / "pretrained", vision, text, flan=flan, tokenizer=tokenizer)
    fused = integration_point != "none"
    yaml = {
        "model_name": "visual_t5",
        "vit_type": "qavit" if fused else "clip",
        "vit_model": "pretrained/clip",
        "vit_layer": -1,
        "llm": "pretrained/t5",
        "hidden_translation_layers": 2,
        "use_lora": lora,
        "lora_r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "lora_target_modules": ["q", "v", "shared"],
    } | ({"integration_point": integration_point} if fused else {})
    folder.joinpath("config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in yaml.items()))
    generator = torch.Generator().manual_seed(0)
    shapes = dict(_shapes(vision, text, integration_point, flan=flan, lora=lora))
    state = {key: _random(key, shape, generator).to(dtype) for key, shape in shapes.items()}
    for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(() if flan else ("lm_head.weight",))):
        state[_prefix(lora) + alias] = state[_prefix(lora) + "shared.weight"]
    torch.save({"model": state}, folder / "ckpt.pth")
    return folder / "ckpt.pth"


def _prefix(lora: bool) -> str:
    return "base_model.model." if lora else ""


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if "norm" in key or key.endswith("instruct_dim_reduce.0.weight"):
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    if key.endswith("gate"):
        return torch.full(shape, 0.5)
    if "shared.weight" in key:
        return torch.randn(shape, generator=generator)
    fan_in = shape[-1] if len(shape) == 2 else shape[1] * shape[2] * shape[3] if len(shape) == 4 else 1024
    scale: float = fan_in**-0.5 * (0.3 if "Attention.q." in key else 1.0)
    return torch.randn(shape, generator=generator) * scale


def _shapes(
    vision: dict[str, int], text: dict[str, int], point: str, *, flan: bool, lora: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix = _prefix(lora)
    for key, shape in (*_t5_shapes(text, flan), *_vision_shapes(vision, text, point)):
        yield prefix + key, shape
        is_adapted = key.endswith((".q.weight", ".v.weight")) and "Attention" in key
        if lora and is_adapted:
            yield prefix + key.replace(".weight", ".lora_A.default.weight"), (LORA_RANK, shape[1])
            yield prefix + key.replace(".weight", ".lora_B.default.weight"), (shape[0], LORA_RANK)
    if lora:
        yield prefix + "shared.lora_embedding_A.default", (LORA_RANK, text["vocab_size"])
        yield prefix + "shared.lora_embedding_B.default", (text["d_model"], LORA_RANK)


def _t5_shapes(text: dict[str, int], flan: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, hidden = text["d_model"], text["num_heads"] * text["d_kv"], text["d_ff"]
    yield "shared.weight", (text["vocab_size"], width)
    if flan:
        yield "lm_head.weight", (text["vocab_size"], width)
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for i in range(text["num_layers"]):
            block = f"{stack}.block.{i}.layer"
            for j, attention in enumerate(attentions):
                for part in "qkv":
                    yield f"{block}.{j}.{attention}.{part}.weight", (inner, width)
                yield f"{block}.{j}.{attention}.o.weight", (width, inner)
                yield f"{block}.{j}.layer_norm.weight", (width,)
            if i == 0:
                yield f"{block}.0.SelfAttention.relative_attention_bias.weight", (32, text["num_heads"])
            last = len(attentions)
            for name in ("wi_0", "wi_1") if flan else ("wi",):
                yield f"{block}.{last}.DenseReluDense.{name}.weight", (hidden, width)
            yield f"{block}.{last}.DenseReluDense.wo.weight", (width, hidden)
            yield f"{block}.{last}.layer_norm.weight", (width,)
        yield f"{stack}.final_layer_norm.weight", (width,)


def _vision_shapes(vision: dict[str, int], text: dict[str, int], point: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    from edgevqa.models.qavit import fused_layers

    width, hidden, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tower = "vision.vision_tower.vision_model"
    yield f"{tower}.embeddings.class_embedding", (width,)
    yield f"{tower}.embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield f"{tower}.embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2 + 1, width)
    for norm in ("pre_layrnorm", "post_layernorm"):
        yield from _linear(f"{tower}.{norm}", (width,))
    fused = fused_layers(point, vision["num_hidden_layers"])
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{i}"
        extra = ["instruction_out_proj"] if i in fused else []
        for part in ["q_proj", "k_proj", "v_proj", "out_proj", *extra]:
            yield from _linear(f"{layer}.self_attn.{part}", (width, width))
        yield from _linear(f"{layer}.layer_norm1", (width,))
        yield from _linear(f"{layer}.layer_norm2", (width,))
        yield from _linear(f"{layer}.mlp.fc1", (hidden, width))
        yield from _linear(f"{layer}.mlp.fc2", (width, hidden))
        if i in fused:
            yield f"{layer}.self_attn.instruction_gate", (1,)
            yield f"{layer}.self_attn.instruction_proj_gate", (1,)
            yield from _linear(f"{layer}.instruct_dim_reduce.0", (text["d_model"],))
            yield f"{layer}.instruct_dim_reduce.1.weight", (width, text["d_model"])
            yield f"{layer}.instruct_dim_reduce.3.weight", (width, width)
    yield "translation_mlp.dummy", (1,)
    yield from _linear("translation_mlp.layers.0", (text["d_model"], width))
    yield from _linear("translation_mlp.layers.1", (text["d_model"], text["d_model"]))


def _linear(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _write_bases(
    folder: Path, vision: dict[str, int], text: dict[str, int], *, flan: bool, tokenizer: Path | None
) -> None:
    from edgevqa.export.sources import reference_folder

    clip_folder, t5_folder = folder / "clip", folder / "t5"
    for path in (clip_folder, t5_folder):
        path.mkdir(parents=True, exist_ok=True)
    clip: dict[str, Any] = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", **vision}
    t5: dict[str, Any] = {"model_type": "t5", "feed_forward_proj": "gated-gelu" if flan else "relu", **text}
    t5 |= {"tie_word_embeddings": not flan, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    size = vision["image_size"]
    processor: dict[str, Any] = {
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": size,
    }
    processor |= {"do_normalize": True, "image_mean": MEAN, "image_std": STD}
    clip_folder.joinpath("config.json").write_text(json.dumps(clip))
    clip_folder.joinpath("preprocessor_config.json").write_text(json.dumps(processor))
    t5_folder.joinpath("config.json").write_text(json.dumps(t5))
    shutil.copyfile(tokenizer or reference_folder() / "tokenizer.json", t5_folder / "tokenizer.json")


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clip", choices=CLIP, default="tiny")
    parser.add_argument("--t5", choices=T5, default="tiny")
    parser.add_argument("--integration-point", default="late", help="all, early, late, late2, late3, sparse or none")
    parser.add_argument("--t5-1.0", dest="old", action="store_true", help="T5 1.0: ReLU, head tied to the embedding")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--tokenizer", type=Path, help="default: the reference model's")
    arguments = parser.parse_args()
    path = write(
        arguments.folder,
        clip=arguments.clip,
        t5=arguments.t5,
        integration_point=arguments.integration_point,
        dtype=torch.bfloat16 if arguments.bfloat16 else torch.float32,
        flan=not arguments.old,
        tokenizer=arguments.tokenizer,
    )
    print(f"{path}: {path.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
