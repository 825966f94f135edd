"""Which Linear layers belong together: those that read one tensor, and those that hold one weight, in all graphs.

The layers of a block share what SmoothQuant moves; weights that two graphs hold alike (a T5 encoder for the question and
for the answer) are scaled alike, and so are still stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from edgevqa.calibration.linears import Linear, find_linears
from edgevqa.calibration.observation.statistics import GraphStatistics, TensorStatistics
from edgevqa.calibration.quantization.smoothquant import Fold, find_folds

Tensor: TypeAlias = "tuple[str, str]"
"""A tensor that feeds a Linear: graph and value name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatGraph:
    """A float32 graph, its Linear layers and what was observed of it; its weights stay on the disk."""

    name: str
    model: ir.Model
    linears: dict[str, Linear]
    statistics: GraphStatistics

    @classmethod
    def of(cls, name: str, model: ir.Model, statistics: GraphStatistics | None) -> FloatGraph:
        """`statistics` None: the graph was never run."""
        observed = statistics or GraphStatistics(inputs={}, absmax={})
        return cls(name=name, model=model, linears=find_linears(model.graph), statistics=observed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A Linear of one graph. `key` is the same for equal weights; `tensors` are what its uses read."""

    name: str
    graph: str
    linear: Linear
    key: bytes
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Layers that share their inputs' channels. `folds` is None where one of the tensors cannot be divided exactly."""

    layers: tuple[Layer, ...]
    tensors: dict[Tensor, TensorStatistics | None]
    folds: dict[Tensor, tuple[Fold, ...]] | None

    @property
    def observed(self) -> bool:
        return all(statistics is not None and len(statistics.rows) > 0 for statistics in self.tensors.values())


def find_layers(graphs: Mapping[str, FloatGraph]) -> list[Layer]:
    """Every Linear layer of every graph, in the order in which they run."""
    return [
        Layer(
            name=f"{graph.name}/{linear.name}",
            graph=graph.name,
            linear=linear,
            key=_digest(linear),
            tensors=tuple((graph.name, str(use.input.name)) for use in linear.uses),
        )
        for graph in graphs.values()
        for linear in graph.linears.values()
    ]


def find_blocks(graphs: Mapping[str, FloatGraph], layers: list[Layer]) -> list[Block]:
    """All layers, each in one block; a block without folds holds the layers that read one tensor or hold one weight."""
    groups: list[tuple[set[object], list[Layer]]] = []
    for layer in layers:
        links: set[object] = {layer.key, *layer.tensors}
        joined = [group for group in groups if group[0] & links]
        groups = [group for group in groups if not group[0] & links]
        members = [member for group in joined for member in group[1]]
        groups.append((links.union(*(group[0] for group in joined)), [*members, layer]))
    return [_block(graphs, members) for _, members in groups]


def _block(graphs: Mapping[str, FloatGraph], layers: list[Layer]) -> Block:
    names = dict.fromkeys(tensor for layer in layers for tensor in layer.tensors)
    values = {(layer.graph, str(use.input.name)): use.input for layer in layers for use in layer.linear.uses}
    folds = {name: find_folds(values[name], graphs[name[0]].linears) for name in names}
    exact = {name: fold for name, fold in folds.items() if fold is not None}
    return Block(
        layers=tuple(layers),
        tensors={name: graphs[name[0]].statistics.inputs.get(name[1]) for name in names},
        folds=exact if len(exact) == len(folds) else None,
    )


def _digest(linear: Linear) -> bytes:
    tensor = linear.weight.const_value
    if tensor is None:
        raise RuntimeError(f"The weight of {linear.name} is no constant.")
    return hashlib.sha256(f"{linear.out_axis} {tensor.shape}".encode() + tensor.tobytes()).digest()
