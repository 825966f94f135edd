"""The pipeline people use: load a bundle, ask questions about pictures, get answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.answer_stream import AnswerStream
from edgevqa.runtime.backend_choice import Note, choose_run
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import picture_key
from edgevqa.runtime.codecs import make_codec
from edgevqa.runtime.counters import Lap, Statistics
from edgevqa.runtime.decoding import Limits, softmax
from edgevqa.runtime.errors import ConfigError, EdgeVQAError, QuestionError
from edgevqa.runtime.finite import explained
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.hashing import Progress
from edgevqa.runtime.images import ImageSource
from edgevqa.runtime.manifest import GenerationSpec, Manifest
from edgevqa.runtime.pipelines import flow_entry, make_flow
from edgevqa.runtime.pipelines.base import (
    Answer,
    AnswerOptions,
    Choice,
    EmbeddingFlow,
    Outcome,
    Pair,
    Picture,
    PipelineOptions,
    Request,
    confidence_of,
    embedding_flow,
)
from edgevqa.runtime.pipelines.features import SEED, Reconstruction, features_flow
from edgevqa.runtime.pipelines.pictures import Images, load_pictures
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.sessions import possible_backends
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.text import Question

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Times: TypeAlias = "dict[str, float]"
TOP_K = 5
NOTHING_GENERATED = GenerationSpec(decoder_start_token_id=0, eos_token_id=0, pad_token_id=0, max_new_tokens=1)


class Pipeline:
    """A loaded bundle that answers questions. A context manager; `close` frees the graphs.

    One pipeline may be shared by threads: a lock lets one call (of a stream: one token) run at a time, and the figures
    in `timing_ms` of a stream then include what others did in between. For answers in parallel load one pipeline each.
    """

    def __init__(self, bundle: Bundle, graphs: Graphs, options: PipelineOptions, *, variant: str, backend: str) -> None:
        """Use `Pipeline.load`."""
        self.bundle = bundle
        self.options = options
        self.variant = variant
        self.backend = backend
        self._graphs = graphs
        self._flow = make_flow(graphs, bundle.manifest, options)
        self.questions = Questions.of(bundle)
        self._codec = make_codec(flow_entry(bundle.manifest).codec, bundle.manifest, self.questions)
        self._generation = bundle.manifest.generation or NOTHING_GENERATED
        self._ends = Limits.of(bundle.manifest.generation, 1).ends if bundle.manifest.generation else ()
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        note: Note | None = None,
        **options: Any,
    ) -> Pipeline:
        """Load the bundle in folder `path`; the keywords are the fields of `PipelineOptions`.

        `progress` is called while big files are hashed, `note` when installed backends have to be measured. Raises
        `BundleError`, `InputError` for a precision that the bundle lacks, `ConfigError` for wrong options, and
        `MissingExtraError` when no backend is installed.
        """
        chosen = PipelineOptions.of(options)
        possible_backends(chosen.backend)  # before the files are read: what is not installed is said at once
        return cls.from_bundle(Bundle.open(path, check=chosen.check, progress=progress), chosen, note=note)

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, options: PipelineOptions | None = None, *, note: Note | None = None, profile: bool = False
    ) -> Pipeline:
        """Load an opened bundle; raises what `load` raises. With `profile` its sessions time their nodes."""
        options = options or PipelineOptions()
        run = choose_run(bundle, options, note)
        session_options = SessionOptions(
            threads=options.threads, provider_options=options.provider_options, profile=profile
        )
        graphs = Graphs.load(bundle, run.variant, run.backend, session_options)
        try:
            return cls(bundle, graphs, options, variant=run.variant, backend=run.backend)
        except BaseException:
            graphs.close()
            raise

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def graphs(self) -> Graphs:
        """The sessions, owned by the pipeline."""
        return self._graphs

    @property
    def statistics(self) -> Statistics:
        """Counters and times since loading (or since `warm_up`)."""
        return self._graphs.statistics

    @property
    def embeds(self) -> bool:
        """Whether the model has embeddings: whether `embed_images` and `embed_texts` can be called."""
        return isinstance(self._flow, EmbeddingFlow) and self._flow.embeds

    @overload
    def answer(self, image: Images, question: str, **options: Unpack[AnswerOptions]) -> Answer: ...

    @overload
    def answer(
        self, image: Images, question: list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]
    ) -> list[Answer]: ...

    def answer(
        self, image: Images, question: str | list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]
    ) -> Answer | list[Answer]:
        """Answer one question about a picture (or a list of them, where the model takes several), or several in one batch.

        Keywords: `choices` restricts the answer to one of them and scores each; `max_new_tokens` (generated tokens, the
        end token included) and `num_beams` (1 is greedy) are the bundle's defaults where not given or None; `top_k` (5) is
        how many labels of a classifier get a score. Models that need no words take any question, also an empty one.

        The channels of an array are RGB; for OpenCV frames pass frame[:, :, ::-1]. Every question is read before the
        first is answered. Raises `ImageError`, `QuestionError` and `ConfigError`.
        """
        request = self._request(options)
        if not isinstance(question, (str, list, tuple)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise QuestionError(f"The question was given as {question!r}; expected a string, or a list of strings.")
        asked = [self._question(text) for text in ([question] if isinstance(question, str) else question)]
        if not asked:
            return []
        picture, loading = self._picture(image)
        _add(asked[0][1], loading)
        answers = self._answer_all(((Pair(picture, each), spent) for each, spent in asked), request)
        return answers[0] if isinstance(question, str) else answers

    def answer_pairs(self, pairs: Iterable[tuple[Images, str]], **options: Unpack[AnswerOptions]) -> list[Answer]:
        """Answer pairs of picture and question, in order, `max_batch` rows at once. Keywords as in `answer`.

        A picture is read (and copied) when its pair is pulled, so that a generator may fill one buffer again and again.
        Of a list of pairs every question is read before the first is answered.
        """
        return self._answer_all(self._pairs(pairs), self._request(options))

    def stream(self, image: Images, question: str, **options: Unpack[AnswerOptions]) -> AnswerStream:
        """Answer piece by piece: iterate for the text, then read `.answer`. Keywords as in `answer`.

        The pieces joined are the answer's text. With choices or more than one beam there is one piece, at the end.
        """
        request = self._request(options)
        with self._lock:
            lap = Lap(self.statistics)
            pair = Pair(self._picture(image)[0], self._question(question)[0])
        return AnswerStream(
            self._generate(pair, request),
            lambda outcome: self._codec.settled((*outcome.prompt, *outcome.generated.tokens)),
            lambda outcome: self._answer(pair.question, outcome, request, lap.timing_ms()),
        )

    def embed_images(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Normalised embeddings of pictures, (images, width), or (images, vectors, width) of models that see several.

        `runtime/similarity.py` compares them with those of texts. Pictures are read `max_batch` at a time. Raises
        `ImageError`, and `ConfigError` for a model that has no embeddings.
        """
        flow, source = embedding_flow(self._flow), iter(images)
        rows: list[NDArray[np.float32]] = []
        while pictures := [self._picture(image)[0] for image in islice(source, self.options.max_batch)]:
            with self._lock, self._explained():
                self._check_open()
                rows.append(flow.embed_images(pictures))
        return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)

    def embed_texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Normalised embeddings of texts, (texts, width). Raises `QuestionError`, and `ConfigError` as `embed_images`."""
        flow = embedding_flow(self._flow)
        questions = [self._question(text)[0] for text in ([texts] if isinstance(texts, str) else texts)]
        with self._lock, self._explained():
            self._check_open()
            return flow.embed_texts(questions) if questions else np.zeros((0, 0), dtype=np.float32)

    def features(self, image: ImageSource) -> dict[str, NDArray[np.float32]]:
        """An encoder's arrays for a picture, as `last_hidden_state` (tokens, width). Raises `ImageError` and `ConfigError`."""
        flow, picture = features_flow(self._flow), self._picture(image)[0]
        with self._lock, self._explained():
            self._check_open()
            return flow.features([picture])[0]

    def reconstruct(self, image: ImageSource, *, mask_ratio: float | None = None, seed: int = SEED) -> Reconstruction:
        """Leave out a share of the picture's patches (default: that of training), drawn with `seed`, and predict them.

        Raises `ImageError`, and `ConfigError` for a model without a decoder and for a share that leaves out all or none.
        """
        flow, picture = features_flow(self._flow), self._picture(image)[0]
        with self._lock, self._explained():
            self._check_open()
            return flow.reconstruct([picture], mask_ratio, seed)[0]

    def warm_up(self) -> None:
        """Run every graph once, then forget what that left in caches and statistics (and what was there before)."""
        options: AnswerOptions = {"max_new_tokens": 2}
        blank = np.zeros((8, 8, 3), dtype=np.uint8)
        with self._lock, self._explained():
            self._check_open()
            pair = Pair(Picture(blank, picture_key(blank)), self.questions.blank())
            self._flow.answer([pair], self._request(options))
            if isinstance(self._flow, EmbeddingFlow) and self._flow.embeds:
                self._flow.embed_images([pair.picture])
                self._flow.embed_texts([pair.question])
            self.clear_caches()
            self.statistics.reset()

    def clear_caches(self) -> None:
        """Forget every picture and question."""
        with self._lock:
            self._flow.clear_caches()

    def close(self) -> None:
        """Free the graphs and what is kept; closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._flow.clear_caches()
            self._graphs.close()

    def __enter__(self) -> Pipeline:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.variant, self.bundle.variant(self.variant))

    def _check_open(self) -> None:
        if self._closed:
            raise EdgeVQAError("The pipeline was closed; load it again.")

    def _pairs(self, pairs: Iterable[tuple[Images, str]]) -> Iterator[tuple[Pair, _Times]]:
        """Pairs ready to run, each with what that took; of a list, the questions are read first."""
        known = [self._question(text) for _, text in pairs] if isinstance(pairs, (list, tuple)) else None
        for number, (image, text) in enumerate(pairs):
            question, spent = self._question(text) if known is None else known[number]
            picture, loading = self._picture(image)
            _add(spent, loading)
            yield Pair(picture, question), spent

    def _answer_all(self, pairs: Iterator[tuple[Pair, _Times]], request: Request) -> list[Answer]:
        """Answers in order. The lock is not held while pairs are pulled: what makes them may wait for another thread."""
        batch = max(1, self.options.max_batch // request.rows_per_question)
        answers: list[Answer] = []
        while chunk := list(islice(pairs, batch)):
            timing_ms: _Times = {}
            for _, spent in chunk:
                _add(timing_ms, spent)
            ready = [pair for pair, _ in chunk]
            with self._lock, self._explained():
                self._check_open()
                lap = Lap(self.statistics)
                outcomes = self._flow.answer(ready, request)
                _add(timing_ms, lap.timing_ms())
            answers += [
                self._answer(pair.question, outcome, request, timing_ms)
                for pair, outcome in zip(ready, outcomes, strict=True)
            ]
        return answers

    def _generate(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """Growing outcomes; the lock is held for one token at a time."""
        if request.num_beams > 1 or request.choices:
            with self._lock, self._explained():
                self._check_open()
                outcomes = self._flow.answer([pair], request)
            yield outcomes[0]
            return
        steps = self._flow.stream(pair, request)
        while True:
            with self._lock, self._explained():
                self._check_open()
                outcome = next(steps, None)
            if outcome is None:
                return
            yield outcome

    def _picture(self, image: Images) -> tuple[Picture, _Times]:
        """A copy of the picture as it is now, and what that took."""
        with self._lock:
            self._check_open()
            lap = Lap(self.statistics)
            with self.statistics.timed("load_image"):
                picture = load_pictures(image, self.manifest.image, max_pixels=self.options.max_pixels)
            return picture, lap.timing_ms()

    def _question(self, text: str) -> tuple[Question, _Times]:
        """A question ready to run, and what that took."""
        with self._lock:
            self._check_open()
            lap = Lap(self.statistics)
            with self.statistics.timed("tokenize"):
                question = self.questions.question(text)
            return question, lap.timing_ms()

    def _request(self, options: AnswerOptions) -> Request:
        unknown = sorted(set(options) - set(AnswerOptions.__annotations__))
        if unknown:
            valid = ", ".join(AnswerOptions.__annotations__)
            raise ConfigError(f"Unknown option {', '.join(unknown)}; expected {valid}.")
        tokens, beams, top_k = options.get("max_new_tokens"), options.get("num_beams"), options.get("top_k")
        return Request(
            top_k=TOP_K if top_k is None else top_k,
            max_new_tokens=self._generation.max_new_tokens if tokens is None else tokens,
            num_beams=self._generation.num_beams if beams is None else beams,
            choices=self._choices(options.get("choices")),
        )

    def _choices(self, choices: object) -> tuple[Choice, ...]:
        if choices is None:
            return ()
        if isinstance(choices, str) or not isinstance(choices, Iterable):
            raise ConfigError(f"The choices were given as {choices!r}; expected a list of strings.")
        given: list[object] = list(cast("Iterable[object]", choices))
        for choice in given:
            if not isinstance(choice, str):
                raise ConfigError(f"The choices hold {choice!r}, a {type(choice).__name__}; expected strings.")
        texts = list(dict.fromkeys(str(choice).strip() for choice in given))
        if not texts or "" in texts:
            raise ConfigError(f"The choices are {given}; expected at least one, and none empty.")
        found: dict[tuple[int, ...], str] = {}
        for text in texts:
            ids = self._codec.choice(text)
            if ids in found:
                raise ConfigError(
                    f"The choices {found[ids]!r} and {text!r} are the same tokens to the model. Give one of them."
                )
            found[ids] = text
        return tuple(Choice(text, ids) for ids, text in found.items())

    def _answer(self, question: Question, outcome: Outcome, request: Request, timing_ms: dict[str, float]) -> Answer:
        generated, scores = outcome.generated, outcome.scores
        text = outcome.text
        if text is None:
            text = self._codec.decode((*outcome.prompt, *generated.tokens))
        confidence = confidence_of(generated.mean_log_probability)
        if request.choices:
            if scores is None:
                shares = softmax([choice.total_log_probability for choice in outcome.choices])
                scores = {choice.text: share for choice, share in zip(request.choices, shares, strict=True)}
            text = request.choices[outcome.choices.index(generated)].text
            confidence = scores[text]
        return Answer(
            question=question.text,
            text=text,
            confidence=confidence,
            log_probability=generated.mean_log_probability,
            scores=scores,
            tokens=generated.tokens,
            truncated_answer=not request.choices and outcome.text is None and generated.cut_by(self._ends),
            truncated_question=question.truncated,
            unknown_tokens=question.unknown_tokens,
            timing_ms=timing_ms,
        )


def _add(total: _Times, spent: _Times) -> None:
    """Add the times of a further part to a total."""
    for stage, value in spent.items():
        total[stage] = total.get(stage, 0.0) + value
