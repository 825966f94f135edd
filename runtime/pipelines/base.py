"""What every pipeline takes and gives: options, answers, and the flow that a family's graphs follow."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.decoding import Generated
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.images import MAX_PIXELS, Rgb
from edgevqa.runtime.text import Question

MAX_NEW_TOKENS_LIMIT = 1024
MAX_BEAMS_LIMIT = 64
MAX_TOP_K = 1_000_000
_LOWEST = {
    "threads": 0,
    "trunk_cache_mb": 0,
    "prefix_cache_mb": 0,
    "question_cache_mb": 0,
    "max_batch": 1,
    "max_pixels": 1,
}


class PipelineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pipeline is loaded and what it keeps.

    `precision` None takes fp32, or the bundle's first variant; `threads` 0 is the backend's default; `check` verifies
    hashes. The caches are bounded in MiB (0 keeps nothing). `max_batch` bounds the rows that run at once: questions, or
    questions times beams or choices. `max_pixels` bounds pictures before they are decoded.
    """

    precision: str | None = None
    backend: str = "auto"
    threads: int = 0
    check: bool = True
    provider_options: dict[str, str] = {}
    trunk_cache_mb: int = 64
    prefix_cache_mb: int = 512
    question_cache_mb: int = 16
    max_batch: int = 8
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = _whole(getattr(self, name))
            if value is None or value < lowest:
                raise ConfigError(
                    f"Option {name} is {getattr(self, name)!r}; expected a whole number of at least {lowest}."
                )
            msgspec.structs.force_setattr(self, name, value)
        expected = (
            ("precision", (str, type(None)), "a string or None"),
            ("backend", (str,), "a string"),
            ("check", (bool,), "True or False"),
            ("provider_options", (dict,), "a dictionary of strings"),
        )
        for name, kinds, what in expected:
            if not isinstance(getattr(self, name), kinds):
                raise ConfigError(f"Option {name} is {getattr(self, name)!r}; expected {what}.")
        given: dict[Any, Any] = dict(self.provider_options)
        if not all(isinstance(part, str) for item in given.items() for part in item):
            raise ConfigError(f"Option provider_options is {given!r}; expected a dictionary of strings.")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> PipelineOptions:
        """Options from keywords. Raises `ConfigError` that names the valid ones when one is unknown."""
        unknown = sorted(set(settings) - set(cls.__struct_fields__))
        if unknown:
            raise ConfigError(f"Unknown option {', '.join(unknown)}; expected {', '.join(cls.__struct_fields__)}.")
        return cls(**settings)


class AnswerOptions(TypedDict, total=False):
    """Keywords of one call: answers to choose from, generated tokens (the end token included), beams (1 is greedy).

    `top_k` is how many of a classifier's labels get a score.
    """

    choices: Sequence[str] | None
    max_new_tokens: int | None
    num_beams: int | None
    top_k: int | None


class Choice(msgspec.Struct, frozen=True):
    """An answer that may be given, and its tokens with the end token."""

    text: str
    ids: tuple[int, ...]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are made. With `choices` the likeliest of them is the answer, and the other two do not matter."""

    max_new_tokens: int
    num_beams: int = 1
    choices: tuple[Choice, ...] = ()
    top_k: int = 5

    def __post_init__(self) -> None:
        limits = (("max_new_tokens", MAX_NEW_TOKENS_LIMIT), ("num_beams", MAX_BEAMS_LIMIT), ("top_k", MAX_TOP_K))
        for name, highest in limits:
            value = _whole(getattr(self, name))
            if value is None or not 1 <= value <= highest:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a whole number from 1 to {highest}.")
            msgspec.structs.force_setattr(self, name, value)

    @property
    def rows_per_question(self) -> int:
        return len(self.choices) or self.num_beams


class Picture(msgspec.Struct, frozen=True):
    """A decoded picture and the key of its content.

    In `memo` a flow may leave what it computed, so that one call computes it once even when no cache keeps it. `parts` are
    the pictures of a question about several; `rgb` is then the first one's, and `key` that of all.
    """

    rgb: Rgb
    key: bytes
    memo: dict[str, Any] = {}
    parts: tuple[Picture, ...] = ()


class Pair(msgspec.Struct, frozen=True):
    """A question about a picture."""

    picture: Picture
    question: Question


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a flow found for one pair: generated tokens, or every choice's likelihood in the request's order.

    `prompt` are tokens that the answer's text begins with but that were given. `text` and `scores` are set by flows that
    know them; else they follow from the tokens and the choices.
    """

    generated: Generated
    choices: tuple[Generated, ...] = ()
    prompt: tuple[int, ...] = ()
    text: str | None = None
    scores: dict[str, float] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer.

    `log_probability` is the mean over the answer's tokens, the end token included where it was generated. `confidence`
    is its exponential, in (0, 1]; with choices it is the score of the one chosen. `scores` gives every choice its share
    (they add up to 1, or are each choice's own probability of models such as SigLIP), a classifier's likeliest labels
    theirs, or "yes" and "no"; it is None where there is none of these.
    `truncated_answer` tells that the answer would have gone on: `max_new_tokens` ended it, no end token.
    `truncated_question` tells that the end of the question was cut, `unknown_tokens` how many of its tokens the
    vocabulary lacks. `timing_ms` are the milliseconds a stage took for the batch that this answer came from, with `total`; an
    engine's stage ends when the GPU has its work, and who reads the result waits for it.
    """

    question: str
    text: str
    confidence: float
    log_probability: float
    scores: dict[str, float] | None
    tokens: tuple[int, ...]
    truncated_answer: bool
    truncated_question: bool
    unknown_tokens: int
    timing_ms: dict[str, float]


class Flow(Protocol):
    """How one kind of model turns pairs into outcomes; one class a value of `manifest.pipeline`."""

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Answer a batch that is small enough to run at once, in its order."""
        ...

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """What has been found so far: with greedy decoding after every token, else once."""
        ...

    def clear_caches(self) -> None:
        """Forget every image and question."""
        ...


@runtime_checkable
class EmbeddingFlow(Protocol):
    """A flow that can give a picture and a text a place in one space, where `embeds` is true."""

    embeds: bool

    def embed_images(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Normalised embeddings, (pictures, width), or (pictures, vectors, width) of models that see several."""
        ...

    def embed_texts(self, questions: Sequence[Question]) -> NDArray[np.float32]:
        """Normalised embeddings, (texts, width)."""
        ...


def embedding_flow(flow: Flow) -> EmbeddingFlow:
    """The flow as one that embeds. Raises `ConfigError` for a model that has no embeddings."""
    if isinstance(flow, EmbeddingFlow) and flow.embeds:
        return flow
    raise no_embeddings()


def no_embeddings() -> ConfigError:
    """What is said of a model that has no embeddings."""
    return ConfigError(
        "The bundle's model has no embeddings of pictures and texts that could be compared. Take a dual encoder, such as "
        "CLIP or SigLIP (`edgevqa families` lists what can be exported)."
    )


def _whole(value: Any) -> int | None:
    """An int for an integer of Python or numpy, and None for anything else, booleans included."""
    return None if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)


def confidence_of(mean_log_probability: float) -> float:
    """The geometric mean of the token probabilities, above 0 also where it underflows."""
    return max(math.exp(min(mean_log_probability, 0.0)), 5e-324)
