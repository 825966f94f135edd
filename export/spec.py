"""What a family tells the exporter: its graphs, the cases they are checked on, and what the runtime must know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevqa.export.sources import Source
from edgevqa.runtime.manifest import GenerationSpec, ImageSpec, MatchingSpec, SourceSpec, TextSpec

Array = NDArray[Any]
Samples = Literal["random", "real"]


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
    samples: Samples
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class AnswerCase:
    """A picture (height, width, 3) uint8, a question, and what the eager model answers in `max_new_tokens` tokens.

    `tokens` are the generated ones up to the end token, where they are compared too. `max_new_tokens` is None where
    nothing is generated; `choices` are what the answer is chosen from, where it is.
    """

    image: NDArray[np.uint8]
    question: str
    expected: str
    max_new_tokens: int | None = None
    tokens: tuple[int, ...] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """A tokenizer file's bytes, and how it is used; the file's entry in `spec` is filled when it is written."""

    spec: TextSpec
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory with everything that the runtime needs beside its graphs.

    `task` is for people; `pipeline` names a row of `runtime/pipelines`. `texts` are further tokenizers by what they
    serve. `model_info` is for people and tools to read.
    """

    model: Any
    task: str
    pipeline: str
    source: SourceSpec
    model_info: Mapping[str, Any]
    image: ImageSpec | None = None
    text: Tokenized | None = None
    texts: Mapping[str, Tokenized] = field(default_factory=dict)
    generation: GenerationSpec | None = None
    labels: Sequence[str] = ()
    matching: MatchingSpec | None = None

    @property
    def required_image(self) -> ImageSpec:
        """The preprocessing of a model that has some."""
        if self.image is None:
            raise RuntimeError("the family loads no preprocessing")
        return self.image

    @property
    def required_text(self) -> Tokenized:
        """The tokenizer of a model that has one."""
        if self.text is None:
            raise RuntimeError("the family loads no tokenizer")
        return self.text


Plans = Mapping[str, Callable[[], GraphPlan]]
"""What makes each graph's plan, by the graph's name, in the order in which they run."""


class Family(Protocol):
    """One architecture. Registered by one line in `export/families/__init__.py`.

    `tolerance` is the largest absolute difference from eager PyTorch; a small share of the largest value is added.
    """

    tolerance: float

    def load(self, source: Source) -> Loaded:
        """Load the model in float32 and eval mode."""
        ...

    def plans(self, loaded: Loaded) -> Plans:
        """The graphs in the order they run; each is planned and traced before the next."""
        ...

    def cases(self, loaded: Loaded) -> Iterator[Case]:
        """Inputs and eager outputs of every graph, on random and on real samples."""
        ...

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        """Questions about real pictures with what the eager model answers."""
        ...
