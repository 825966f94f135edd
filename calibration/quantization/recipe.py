"""How a variant is quantised: the one record that the command line, the quantizer and the manifest share."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edgevqa.calibration.observation.ranges import METHODS
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.manifest import Numerics

AUTO = "auto"
WeightBits = Literal["int8", "int4"]
USUAL_BLOCK = 32
BLOCK_SIZES = (16, 32, 64, 128, 256)
BLOCKS_OPSET = 21  # the first with blocks and 4 bits


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the numbers of a quantised variant, except which layers stay high.

    `method` chooses the activations' ranges (`auto`: per tensor the one with the least output error). `smooth` lets
    SmoothQuant move outliers into weights. `weight_clip` searches each output channel's clipping. `weight_only` names
    graphs whose Linear layers get quantised weights alone, in blocks of `block_size` inputs, and `high_graphs` those
    that are not quantised at all. `residual` also quantises
    residual adds, as TensorRT's tools do by default. A layer whose relative output error on captured rows exceeds
    `max_error`, and a residual add whose own exceeds `max_residual_error`, stays high. `tables` is how embeddings and
    the vocabulary head are stored inside FP32, and `max_opset` what the targets read.
    """

    numerics: Numerics
    method: str = AUTO
    smooth: bool = True
    weight_clip: bool = True
    bias_correction: bool = False
    weight_only: dict[str, WeightBits] = {}
    high_graphs: tuple[str, ...] = ()
    block_size: int = USUAL_BLOCK
    residual: bool = False
    max_error: float = 0.3
    max_residual_error: float = 0.05
    tables: Literal["fp16", "fp32"] = "fp16"
    max_opset: int = 23

    def __post_init__(self) -> None:
        if self.method not in (AUTO, *METHODS):
            raise InputError(f"--method {self.method}: expected {AUTO} or one of {', '.join(METHODS)}.")
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"Blocks of {self.block_size} inputs: expected one of {BLOCK_SIZES}.")

    def block_of(self, graph: str, inputs: int) -> int:
        """How many of a layer's `inputs` share a scale, in a graph of `weight_only`.

        All of them where INT8 is written for a target that reads no opset with blocks. INT4 is in blocks everywhere:
        TensorRT reads that since 10.0 (release notes), whatever opset its parser lists.
        """
        whole = self.weight_only[graph] == "int8" and self.max_opset < BLOCKS_OPSET
        return inputs if whole else self.block_size

    def to_json(self) -> dict[str, Any]:
        """The recipe as the manifest keeps it."""
        fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return fields
