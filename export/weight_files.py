"""What a folder's weight files hold, looked at before a model is made: whole, not quantised, and enough for the model."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from edgevqa.export.sources import read_json, reason_of, refuse_pointer
from edgevqa.runtime.errors import CheckpointError

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SUFFIX = ".index.json"
_TAILS = ("weight", "bias")
_SLACK = 1_000_000  # parameters that cost nothing worth a word
_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor of a weight file; `dtype` is in the words of safetensors: F32, BF16, I8, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def check_weights(model_class: Any, config: Any, folder: Path) -> None:
    """Compare `config` with the folder's weight files before anything is allocated.

    Raises `CheckpointError` for quantised or integer weights and for adapters, for files that are missing, damaged or
    pointers, and for a model of many times the numbers that the files hold.
    """
    refuse_quantised(folder)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), whose base model lies elsewhere. Merge the two, as peft's "
            "merge_and_unload does, save the result, and export that."
        )
    stored = read_stored(folder)
    _refuse_depth(config.to_dict(), len(stored), folder)
    model = outline(model_class, config, folder)
    refuse_integers(stored, {name.rpartition(".")[2] for name, _ in model.named_parameters()})
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(each.shape) for each in stored)
    if wanted > 2 * held + _SLACK:  # tied weights are stored once, so a whole checkpoint has half of them at least
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model of {wanted:,} parameters; its weight files hold {held:,}. "
            "Take config.json and weights of the same checkpoint."
        )


def check_tensors(file: Path) -> None:
    """What can be told of a safetensors file, if it is there, without its model: damage, pointers and integers are refused."""
    if file.is_file():
        refuse_integers(list(_contents(_whole(file))))


def refuse_quantised(folder: Path) -> None:
    """Raises `CheckpointError` where config.json, or a part of it, says that the weights are quantised."""
    config = read_json(folder / "config.json", what="a model folder holds config.json and its weights")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        given = part.get("quantization_config")
        if not given:
            continue
        method = given.get("quant_method") if isinstance(given, dict) else None
        if method is None and isinstance(given, dict) and any(name.startswith("load_in_") for name in given):
            method = "bitsandbytes"  # its first files did not name it
        raise CheckpointError(
            f"{folder / 'config.json'} has a quantization_config: the weights are quantised ({method or 'unknown method'}); "
            "take the unquantised checkpoint. `edgevqa quantize` makes smaller variants of what was exported."
        )


def refuse_integers(stored: Collection[Stored], tails: Collection[str] = _TAILS) -> None:
    """Raises `CheckpointError` for integers or booleans where weights belong; `tails` are the last parts of weights' names.

    Buffers may be integers: positions, and the square masks that GPT-2 calls `bias`.
    """
    for each in stored:
        tail = each.name.rpartition(".")[2]
        if not each.floating and tail in tails and not (tail == "bias" and len(each.shape) != 1):
            raise CheckpointError(
                f"{each.file} holds {each.name} as {each.dtype}; expected floating point numbers. The weights are quantised, "
                "or not of this model: take the unquantised checkpoint."
            )


def outline(model_class: Any, config: Any, folder: Path) -> Any:
    """The model that `config` describes, without memory for its weights. Raises `CheckpointError`."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # whatever a configuration's values lead to
        raise CheckpointError(
            f"{folder / 'config.json'} describes no {model_class.__name__} that can be made: {reason_of(error)}"
        ) from error


def read_stored(folder: Path) -> list[Stored]:
    """Every tensor of the folder's weight files, read from their headers. Raises `CheckpointError`."""
    return [each for file in weight_files(folder) for each in _contents(file)]


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load. Raises `CheckpointError` where one is missing, empty or a pointer."""
    for name in _SINGLE:
        if (folder / name).is_file():
            return [_whole(folder / name)]
        if (folder / f"{name}{_SUFFIX}").is_file():
            return [
                _whole(folder / part, of=folder / f"{name}{_SUFFIX}") for part in _parts(folder / f"{name}{_SUFFIX}")
            ]
    raise CheckpointError(
        f"{folder} holds no weights; expected {' or '.join(_SINGLE)}, or their parts with an index ({_SINGLE[0]}{_SUFFIX}). "
        "Copy them from the model's page."
    )


def _parts(index: Path) -> list[str]:
    table = read_json(index, what="it says which file holds which weight").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(
            f"{index} has no weight_map of names; it says which file holds which weight. Copy it again."
        )
    names = sorted(set(table.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {outside[0]!r}; expected files that lie beside it.")
    return names


def _whole(path: Path, of: Path | None = None) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, but {of} names it as a part of the weights. Copy it there.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty. Copy it again.")
    refuse_pointer(path)
    return path


def _contents(file: Path) -> Iterator[Stored]:
    yield from _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Iterator[Stored]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                yield Stored(name=name, dtype=part.get_dtype(), shape=tuple(part.get_shape()), file=file)
    except Exception as error:  # the binding's own exception type
        raise CheckpointError(f"{file} is not a whole safetensors file: {reason_of(error)}. Copy it again.") from error


def _pickled(file: Path) -> Iterator[Stored]:
    """Names and types alone where the file can be mapped, as all but the oldest can."""
    try:
        state = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    except Exception as error:  # pickle, zip and torch each raise their own
        raise CheckpointError(
            f"{file} is no file of weights that PyTorch saved, or holds more than tensors, which is not loaded: pickled code "
            "could do anything. Copy it again, or take the checkpoint's model.safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{file} holds no dictionary of tensors. Take the weights that lie beside its config.json."
        )
    for name, value in state.items():
        yield Stored(name=str(name), dtype=_dtype(value.dtype), shape=tuple(value.shape), file=file)


def _dtype(dtype: torch.dtype) -> str:
    return f"F{dtype.itemsize * 8}" if dtype.is_floating_point else str(dtype).removeprefix("torch.").upper()


def _refuse_depth(config: dict[str, Any], tensors: int, folder: Path) -> None:
    """Even without weights, layers take memory: many times as many as there are tensors are not made."""
    for name in _LAYERS:
        if isinstance(depth := config.get(name), int) and depth > 10 * tensors + 1000:
            raise CheckpointError(
                f"{folder / 'config.json'} has {name} {depth}; its weight files hold {tensors} tensors. "
                "Take config.json and weights of the same checkpoint."
            )
    for part in config.values():
        if isinstance(part, dict):
            _refuse_depth(part, tensors, folder)
