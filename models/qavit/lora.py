"""Merge the LoRA tensors of a published checkpoint into the weights they adapt, exactly and completely.

Source: Hu et al., LoRA (2021), and the layout that peft 0.4 to 0.7 writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
from torch import Tensor

from edgevqa.runtime.errors import CheckpointError

_KEY = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")


class Adapter(msgspec.Struct, frozen=True):
    """One adapted weight: for a Linear W + s B A; for an embedding table E + s (B A)^T."""

    stem: str
    is_table: bool
    down: Tensor
    up: Tensor

    def merged(self, weight: Tensor, scale: float) -> Tensor:
        """`weight` with the adapter in it, float32. Raises `CheckpointError` where shapes do not fit."""
        update = self.up.float() @ self.down.float()
        update = update.T if self.is_table else update
        if update.shape != weight.shape:
            raise CheckpointError(
                f"The LoRA tensors of {self.stem} make {tuple(update.shape)}; the weight is {tuple(weight.shape)}."
            )
        return weight.float() + scale * update


def adapters(lora: Mapping[str, Tensor], rank: int) -> list[Adapter]:
    """Pair up the tensors. Raises `CheckpointError` for half a pair, an unknown kind, or another rank than the yaml's."""
    halves: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for key, tensor in sorted(lora.items()):
        found = _KEY.fullmatch(key)
        if found is None:
            raise CheckpointError(f"The checkpoint's LoRA tensor {key} is of a kind that cannot be merged.")
        halves.setdefault((found.group(1), bool(found.group(2))), {})[found.group(3)] = tensor
    return [_adapter(stem, is_table, pair, rank) for (stem, is_table), pair in halves.items()]


def _adapter(stem: str, is_table: bool, pair: Mapping[str, Tensor], rank: int) -> Adapter:
    if set(pair) != {"A", "B"}:
        raise CheckpointError(f"The checkpoint has lora_{next(iter(pair))} of {stem} without its other half.")
    down, up = pair["A"], pair["B"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"The LoRA tensors of {stem} have shapes {tuple(down.shape)} and {tuple(up.shape)}; the yaml's lora_r is {rank}."
        )
    return Adapter(stem, is_table, down, up)


def merge(
    state: dict[str, Tensor], found: list[Adapter], scale: float, name_of: Callable[[Adapter], str | None]
) -> None:
    """Merge each adapter into `state[name_of(adapter)]`; None means that the adapter has no effect in this model."""
    for adapter in found:
        name = name_of(adapter)
        if name is None:
            continue
        if name not in state:
            raise CheckpointError(f"The checkpoint has LoRA tensors of {adapter.stem}, but no weight {name}.")
        state[name] = adapter.merged(state[name], scale)
