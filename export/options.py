"""What an export can be told: one configuration for the command line and the Python API."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.targets import target

MIN_OPSET, MAX_OPSET = 18, 23  # what the tracer writes; its default decompositions need 18


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How SOURCE becomes a bundle.

    `config` is the yaml of an official checkpoint, whose relative names are looked up under `root`. `opset` 0 means the
    target's. `verify` compares with eager PyTorch and refuses to publish what differs.
    """

    config: Path | None = None
    root: Path = Path()
    revision: str | None = None
    target: str = "cpu"
    precision: str = "fp32"
    opset: int = 0
    verify: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.precision != "fp32":
            raise InputError(
                f"--precision {self.precision}: export writes fp32, the only precision of this version. "
                "Leave --precision out."
            )
        row = target(self.target)
        lowest, highest = min(MIN_OPSET, row.opset), min(MAX_OPSET, row.max_opset)
        if self.opset and not lowest <= self.opset <= highest:
            raise InputError(f"--opset {self.opset}: for target '{self.target}' use {lowest} to {highest}.")

    @property
    def chosen_opset(self) -> int:
        """The opset asked for, else the target's."""
        return self.opset or target(self.target).opset
