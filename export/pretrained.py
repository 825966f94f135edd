"""Models of transformers, loaded from a folder: in float32, with attention that traces, and every weight accounted for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from edgevqa.export.passes import quiet
from edgevqa.export.sources import Source, hash_files, read_json
from edgevqa.export.streaming import load_buffers, streamed_state
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import SourceSpec

SHOWN = 5
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def architecture(folder: Path, known: Collection[str]) -> str:
    """Which of the family's model classes the folder holds: the first known one in `architectures` of its config.json.

    Raises `CheckpointError` that lists the known where there is none of them.
    """
    listed = read_json(folder / "config.json", what="it says which model the folder holds").get("architectures") or []
    found = next((name for name in listed if name in known), None)
    if found is None:
        raise CheckpointError(
            f"{folder / 'config.json'} has the architectures {listed}; expected one of {', '.join(known)}. "
            "Use a checkpoint with one of these heads."
        )
    return str(found)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own: exporting shows one already."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_pretrained(model_class: Any, folder: Path, *, ignored: Sequence[str] = ()) -> Any:
    """`model_class.from_pretrained(folder)` in float32 and eval mode, with eager attention.

    transformers fills in random numbers for weights that a checkpoint lacks. Here that is a `CheckpointError`, unless their
    names begin with one of `ignored`, which the exported graphs do not use. Weights of a big checkpoint in half precision
    stay in its files (`export/streaming.py`).
    """
    state = streamed_state(folder)
    try:
        with quiet("transformers"), without_progress_bars():
            model, found = _loaded(model_class, folder, state)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{folder} cannot be loaded as {model_class.__name__}: {reason}") from error
    wrong = [str(key) for key in (*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"]))]
    wrong = sorted(key for key in wrong if not key.startswith(tuple(ignored)))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"{folder} lacks weights of {model_class.__name__}, or has them in another shape: "
            f"{', '.join(wrong[:SHOWN])}{more}. Check that it is a whole checkpoint of that architecture."
        )
    return model.eval()


def _loaded(model_class: Any, folder: Path, state: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
    """The model and what was missing. transformers takes `state` in place of a folder, not beside it."""
    options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    if state is None:
        return model_class.from_pretrained(folder, local_files_only=True, **options)  # type: ignore[no-any-return]
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    model, found = model_class.from_pretrained(None, config=config, state_dict=state, **options)
    if model.can_generate():
        model.generation_config = _generation_config(folder)
    load_buffers(model)
    return model.requires_grad_(False), found


def _generation_config(folder: Path) -> GenerationConfig:
    """As `from_pretrained` finds it: a file of its own, else what config.json says about generating."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_pretrained(
        folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
    )


def source_spec(source: Source, model: Any) -> SourceSpec:
    """Where a folder's model came from, with the hash of its configuration and weights."""
    files = sorted(file for pattern in _WEIGHTS for file in source.path.glob(pattern))
    return SourceSpec(
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        sha256=hash_files([source.path / "config.json", *files]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def model_info(model: Any) -> dict[str, Any]:
    """The model's configuration as JSON values, without what only names this machine or these versions."""
    info: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version"):
        info.pop(name, None)
    return info
