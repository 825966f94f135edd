"""Load a QA-ViT checkpoint in the published format: `torch.save({'model': state_dict})` with its yaml.

Source of the format: the published implementation, amazon-science/QA-ViT. LoRA is merged exactly: into q and v
everywhere, and into a copy of T5's `shared` table that the question path alone uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgevqa.models.hub import resolve_folder
from edgevqa.models.qavit import lora
from edgevqa.models.qavit.config import QAViTConfig, text_config_from_t5, vision_config_from_clip
from edgevqa.models.qavit.model import QAViTForVQA
from edgevqa.runtime.errors import CheckpointError, ConfigError

MODEL_KEYS = {
    "model_name", "vit_type", "integration_point", "vit_model", "vit_layer", "llm", "hidden_translation_layers",
    "use_lora", "lora_r", "lora_alpha", "lora_target_modules",
}  # fmt: skip
TRAINING_KEYS = {
    "instruction_embeddings", "instruct_via_encoder", "instruct_train_encoder", "is_mm_adaptor",
    "instruction_out_proj", "freeze_clip", "freeze_llm", "dataset_train", "dataset_eval", "base_lr", "min_lr",
    "translation_lr_mul", "warmup_iters", "scheduler", "weight_decay", "n_epochs", "batch_size_train",
    "batch_size_test", "lora_dropout", "lora_bias",
}  # fmt: skip


_SHARED, _QUESTION_TABLE = "language_model.shared.weight", "question_embedding.weight"


class OfficialConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of the published yaml that shape the model; those of training are accepted and not kept."""

    vit_type: str
    vit_model: str
    vit_layer: int
    llm: str
    hidden_translation_layers: int
    integration_point: str = "none"
    use_lora: bool = False
    lora_r: int = 0
    lora_alpha: float = 0

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_r if self.lora_r else 0.0


class OfficialCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model and the folders of its base models (preprocessing beside the first, tokenizer in the second)."""

    model: QAViTForVQA
    vision_folder: Path
    language_folder: Path


def load_official(checkpoint: Path, config: Path, *, root: Path) -> OfficialCheckpoint:
    """Load `checkpoint` (a .pth) as described by `config` (a yaml), in float32 and eval mode.

    Relative names in the yaml are looked up under `root`, then as hub ids. Raises `ConfigError`, `CheckpointError`,
    `NetworkError`.
    """
    official = read_official_config(config)
    vision_folder = resolve_folder(official.vit_model, root=root)
    language_folder = resolve_folder(official.llm, root=root)
    model_config = _model_config(official, vision_folder, language_folder)
    state = _convert(_read_state(checkpoint), official)
    _split_unused(state, model_config)
    model = QAViTForVQA.from_state(model_config, state, where=str(checkpoint))
    return OfficialCheckpoint(model=model, vision_folder=vision_folder, language_folder=language_folder)


def read_official_config(path: Path) -> OfficialConfig:
    """Read the yaml; an unknown key, a missing one or a model other than `visual_t5` is a `ConfigError`."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give the checkpoint's yaml with --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as yaml: {error}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, expected a yaml mapping with vit_type, llm and so on.")
    known = MODEL_KEYS | TRAINING_KEYS
    if unknown := sorted(str(key) for key in raw.keys() - known):
        raise ConfigError(f"{path} has unknown keys: {', '.join(unknown)}. Known are: {', '.join(sorted(known))}.")
    if raw.get("model_name", "visual_t5") != "visual_t5":
        raise ConfigError(f"{path}: model_name is '{raw['model_name']}'; the published QA-ViT with T5 is 'visual_t5'.")
    try:
        official = msgspec.convert(raw, OfficialConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}.") from error
    if official.vit_type == "qavit" and "integration_point" not in raw:
        raise ConfigError(f"{path}: vit_type 'qavit' needs integration_point.")
    if official.use_lora and (official.lora_r < 1 or official.lora_alpha <= 0):
        raise ConfigError(f"{path}: use_lora needs lora_r of at least 1 and lora_alpha above 0.")
    return official


def _model_config(official: OfficialConfig, vision_folder: Path, language_folder: Path) -> QAViTConfig:
    from transformers import CLIPVisionConfig

    try:
        clip = CLIPVisionConfig.from_pretrained(vision_folder)
        t5 = json.loads((language_folder / "config.json").read_text(encoding="utf-8"))
        return QAViTConfig(
            vision_config=vision_config_from_clip(clip),
            text_config=text_config_from_t5(t5),
            # any vit_type but 'qavit' is an ordinary CLIP, as published
            integration_point=official.integration_point if official.vit_type == "qavit" else "none",
            vision_layer=official.vit_layer,
            projector_layers=official.hidden_translation_layers,
            question_embedding=official.vit_type == "qavit" and official.use_lora,
        )
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"The base models' config.json in {vision_folder} (CLIP) and {language_folder} (T5) cannot be used: {error}."
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a .pth file.")
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of the older, unzipped format cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} is not a checkpoint that can be loaded safely (weights_only): {reason}"
        ) from error
    state = loaded.get("model") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(map(str, list(loaded)[:6])) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(
            f"{path} holds {found}; expected a dictionary with 'model', a dictionary of tensors, as the published code saves."
        )
    return dict(state)


def _convert(state: dict[str, Tensor], official: OfficialConfig) -> dict[str, Tensor]:
    """Published names to ours, LoRA merged on the way."""
    state = {k.removeprefix("base_model.model.").replace(".base_layer.", "."): v for k, v in state.items()}
    adapters = {k: state.pop(k) for k in list(state) if ".lora_" in k}
    if adapters and not official.use_lora:
        raise CheckpointError(
            f"The checkpoint has LoRA tensors ({next(iter(adapters))}, ...) but the yaml says use_lora: False."
        )
    _check_aliases(state)
    converted = {_rename(k): v for k, v in state.items()}
    converted = {k: v for k, v in converted.items() if k}
    _merge_lora(converted, adapters, official)
    return converted


def _merge_lora(state: dict[str, Tensor], tensors: dict[str, Tensor], official: OfficialConfig) -> None:
    """LoRA on `shared` goes into a copy of the table, which the question path alone reads."""
    if official.use_lora and not tensors:
        raise CheckpointError("The yaml says use_lora: True, but the checkpoint has no LoRA tensors (`...lora_A...`).")
    question_path = official.vit_type == "qavit" and official.use_lora
    if question_path and _SHARED in state:
        state[_QUESTION_TABLE] = state[_SHARED].float().clone()

    def name_of(adapter: lora.Adapter) -> str | None:
        if adapter.is_table:  # `instruction_embedder` is another name of `shared`
            return _QUESTION_TABLE if question_path and adapter.stem == "shared" else None
        return _rename(adapter.stem + ".weight")

    lora.merge(state, lora.adapters(tensors, official.lora_r), official.lora_scale, name_of)


def _check_aliases(state: dict[str, Tensor]) -> None:
    """The stacks' embedding tables are the shared one under other names; a checkpoint where they differ is another model."""
    shared = state.get("shared.weight")
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "instruction_embedder.weight"):
        if shared is not None and key in state and not torch.equal(state[key], shared):
            raise CheckpointError(f"The checkpoint's {key} is not its shared.weight; a published QA-ViT has one table.")


_RENAMES = (
    (re.compile(r"^vision\.vision_tower\.vision_model\.encoder\.layers\."), "vision.layers."),
    (re.compile(r"^vision\.vision_tower\.vision_model\."), "vision."),
    (re.compile(r"\.instruct_dim_reduce\."), ".question_reducer."),
    (re.compile(r"\.instruction_out_proj\."), ".question_out_proj."),
    (re.compile(r"\.instruction_proj_gate$"), ".question_gate"),
    (re.compile(r"^translation_mlp\."), "projector."),
    (re.compile(r"^(shared|encoder|decoder|lm_head)\."), r"language_model.\1."),
)
# saved but never used by the published code; instruction_embedder is another name of `shared`
_UNUSED = re.compile(
    r"post_layernorm\.|\.instruction_gate$|\.dummy$|^instruction_embedder\.|\.position_ids$|embed_tokens\."
)


def _rename(key: str) -> str:
    """Our name of a published tensor, or '' for one that no computation uses."""
    if _UNUSED.search(key):
        return ""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _split_unused(state: dict[str, Any], config: QAViTConfig) -> None:
    """Drop vision layers above the selected hidden state, which the published model holds but never uses."""
    for key in list(state):
        found = re.match(r"vision\.layers\.(\d+)\.", key)
        if found and config.layers_used <= int(found.group(1)) < config.vision_config.num_hidden_layers:
            del state[key]
