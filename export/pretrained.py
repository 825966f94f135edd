"""Models of transformers, loaded from a folder: in float32, with attention that traces, and every weight accounted for."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from edgevqa.export.passes import quiet
from edgevqa.export.sources import Source, hash_files, read_json, reason_of, shorten
from edgevqa.export.streaming import load_buffers, streamed_state
from edgevqa.export.weight_files import check_weights
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import SourceSpec

SHOWN = 5
_NUMBER = re.compile(r"\.(\d+)(?=\.)")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def architecture(folder: Path, known: Collection[str]) -> str:
    """Which of the family's model classes the folder holds: the first known one in `architectures` of its config.json.

    Raises `CheckpointError` that lists the known where there is none of them.
    """
    listed = read_json(folder / "config.json", what="it says which model the folder holds").get("architectures") or []
    found = next((name for name in listed if name in known), None) if isinstance(listed, list) else None
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
    with quiet("transformers"), without_progress_bars():
        check_weights(model_class, _config(model_class, folder), folder)
        _check_generation(folder)
        state = streamed_state(folder)
        try:
            model, found = _loaded(model_class, folder, state)
        except Exception as error:  # transformers' and torch's own, and whatever a configuration's values lead to
            raise CheckpointError(f"{folder} cannot be loaded as {model_class.__name__}: {reason_of(error)}") from error
    _refuse_gaps(model_class, folder, {**found, "further_layers": _further_layers(model, found)}, tuple(ignored))
    return model.eval()


def _refuse_gaps(model_class: Any, folder: Path, found: Any, ignored: tuple[str, ...]) -> None:
    """Raises `CheckpointError` that names the weights which are missing, of other shapes, or of layers that are left out."""
    missing = sorted(str(key) for key in found["missing_keys"])
    shapes = sorted((str(key), tuple(stored), tuple(wanted)) for key, stored, wanted in found["mismatched_keys"])
    misshapen = [f"{key} {stored}, expected {wanted}" for key, stored, wanted in shapes]
    for what, names, advice in (
        ("has weights in another shape than", misshapen, "Take config.json and weights of the same checkpoint."),
        ("lacks weights of", missing, "Check that it is a whole checkpoint of that architecture."),
        (
            "has weights of more layers than",
            found["further_layers"],
            "Take config.json and weights of the same checkpoint.",
        ),
    ):
        if wrong := [name for name in names if not name.startswith(ignored)]:
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise CheckpointError(f"{folder} {what} {model_class.__name__}: {', '.join(wrong[:SHOWN])}{more}. {advice}")


def _further_layers(model: Any, found: Any) -> list[str]:
    """Weights of layers beyond the model's last one.

    Other weights may be left: published checkpoints hold buffers and heads that no graph needs.
    """
    last: dict[str, int] = {}
    for name in model.state_dict():
        for layers, number in _numbered(name):
            last[layers] = max(number, last.get(layers, 0))
    names = sorted(str(name) for name in found["unexpected_keys"])
    return [name for name in names if any(number > last.get(layers, number) for layers, number in _numbered(name))]


def _numbered(name: str) -> list[tuple[str, int]]:
    """The lists of layers that a weight belongs to, and its place in each."""
    return [(name[: found.start()], int(found[1])) for found in _NUMBER.finditer(name)]


def _config(model_class: Any, folder: Path) -> Any:
    """The folder's configuration. Raises `CheckpointError` where its values are of other types or of unknown models."""
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    read = model_class.config_class.sub_configs  # published ones hold more, which nobody reads
    values = read_json(path, what="a model folder holds config.json and its weights")
    for name, part in [("", values), *values.items()]:
        if not isinstance(part, dict) or name not in {"", *read}:
            continue
        longest = part.get("max_position_embeddings")
        if isinstance(longest, int) and longest < 1:
            raise CheckpointError(
                f"{path} has max_position_embeddings {longest}; expected the tokens that it reads, from 1."
            )
        kind = part.get("model_type") if name else None
        if kind is not None and kind not in CONFIG_MAPPING:
            raise CheckpointError(
                f"{path} has {name} with the model_type {kind!r}, which the installed transformers does not know."
            )
    try:
        return model_class.config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # every configuration has checks of its own
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no configuration of {model_class.__name__}: {shorten(why)}") from error


def _check_generation(folder: Path) -> None:
    """Raises `CheckpointError` for a generation_config.json that cannot be read: transformers would go on without it."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    read_json(path, what="it says how answers end")
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its values lead to
        raise CheckpointError(f"{path} cannot be used: {reason_of(error)}") from error


def label_names(config: Any, folder: Path) -> list[str]:
    """The classes of a classifier, in order. Raises `CheckpointError` where config.json names none, or not all."""
    names, count = config.id2label or {}, config.num_labels
    if not count or not all(isinstance(names.get(index), (str, int, float)) for index in range(count)):
        raise CheckpointError(
            f"{folder / 'config.json'} has the id2label {shorten(str(names))}; expected a name for each of "
            f"{count or 'the'} classes, numbered from 0."
        )
    return [str(names[index]) for index in range(count)]


def _loaded(model_class: Any, folder: Path, state: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
    """The model and what was missing. transformers takes `state` in place of a folder, not beside it."""
    options = {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are told and refused here, with both shapes
    }
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
