"""What a family tells the exporter: its graphs, the cases they are checked on, and what the runtime must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevqa.export.sources import Source
from edgevqa.runtime.manifest import GenerationSpec, ImageSpec, SourceSpec, TextSpec

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """One graph to trace: a torch module, sample arguments, and the names of everything that goes in and out.

    `args` and `dynamic_shapes` have the structure of the module's `forward`; `input_names` and `output_names` name
    their leaves in order. `relabel` renames axes after tracing, `{"words + 17": "keys"}`; `free_axes` frees traced
    ones, `{"trunk_states": {0: "image"}}`, where the graph broadcasts them.
    """

    name: str
    module: Any
    args: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]
    relabel: Mapping[str, str] = field(default_factory=dict)
    free_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs of one graph and what eager PyTorch gives for them."""

    graph: str
    samples: Literal["random", "real"]
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class AnswerCase:
    """A picture (height, width, 3) uint8, a question, and what the eager model answers in `max_new_tokens` tokens."""

    image: NDArray[np.uint8]
    question: str
    expected: str
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory with everything that the runtime needs beside its graphs.

    `text` lacks its file entry until `tokenizer` is in the bundle; `model_info` is for people and tools to read.
    """

    model: Any
    image: ImageSpec
    text: TextSpec
    tokenizer: bytes
    generation: GenerationSpec | None
    source: SourceSpec
    model_info: Mapping[str, Any]


class Family(Protocol):
    """One architecture. Registered by one line in `export/families/__init__.py`.

    `tolerance` is the largest absolute difference from eager PyTorch; a small share of the largest value is added.
    """

    task: str
    pipeline: str
    tolerance: float

    def load(self, source: Source) -> Loaded:
        """Load the model in float32 and eval mode."""
        ...

    def graph_names(self, loaded: Loaded) -> list[str]:
        """Names of the graphs that `plans` gives, in its order."""
        ...

    def plans(self, loaded: Loaded) -> Iterator[GraphPlan]:
        """The graphs in the order they run; each is traced before the next is asked for."""
        ...

    def cases(self, loaded: Loaded) -> Iterator[Case]:
        """Inputs and eager outputs of every graph, on random and on real samples."""
        ...

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        """Questions about real pictures with the eager model's generated answers."""
        ...
