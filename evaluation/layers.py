"""What a variant's own report says of its layers: the error that quantising each one makes, and which stayed high."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer; further fields of the report are left out. `high`: it was not quantised, for the `reason`."""

    name: str
    graph: str = ""
    local_error: float | None = None
    high: bool = False
    reason: str | None = None

    @property
    def full_name(self) -> str:
        """`GRAPH/NAME`, as every command names it."""
        return self.name if not self.graph or self.name.startswith(f"{self.graph}/") else f"{self.graph}/{self.name}"


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    layers: list[Layer] = []


def layers_of(bundle: Bundle, variant: str) -> list[Layer]:
    """The layers in the variant's report, by falling error; empty where it has none. Raises `BundleError`."""
    spec = bundle.variant(variant).report
    if spec is None:
        return []
    bundle.require([spec])
    path = bundle.root / spec.path
    try:
        layers = msgspec.json.decode(path.read_bytes(), type=_Report).layers
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path} is no report of a variant: {error}. Run edgevqa quantize again.") from error
    return sorted(layers, key=lambda layer: -(layer.local_error or 0.0))
