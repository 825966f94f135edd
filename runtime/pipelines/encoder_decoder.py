"""Encoder-decoder models such as QA-ViT with T5: what runs once an image, once a question and once a token."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from edgevqa.runtime.caches import HostKeyValueCache, KeyValueCache, LruCache, MakesKeyValueCache
from edgevqa.runtime.decoding import (
    Generated,
    Integers,
    Limits,
    beam_search,
    greedy_search,
    greedy_steps,
    score_answers,
)
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import GenerationSpec, ImageSpec, Manifest
from edgevqa.runtime.pipelines.base import Outcome, Pair, Picture, PipelineOptions, Request
from edgevqa.runtime.preprocessing import preprocess
from edgevqa.runtime.sessions.base import Array, RepeatsRows, Tensor
from edgevqa.runtime.text import Question, pad

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Value: TypeAlias = "Tensor | Array"
_MIB = 1 << 20
_QUESTION_CACHE_ITEMS = 4096
_IMAGE_CACHE_ITEMS = 1024
_ALWAYS = ("vision_trunk", "projector", "language_encoder", "language_decoder")
_FUSION = ("question_encoder", "vision_fusion")


class EncoderDecoderFlow:
    """The graphs of DESIGN's QA-ViT table, and of the same model without fusion.

    With fusion the trunk is kept for further questions on a picture, and the question's states for further pictures.
    Without, the image's embeddings are kept. Questions are padded in a batch, and every graph gets the true mask.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when a graph or a part of the manifest is missing."""
        self._graphs = graphs
        self._statistics = graphs.statistics
        self._image, self._generation = _specifications(manifest)
        self._max_batch = options.max_batch
        self._fused = any(name in graphs for name in _FUSION)
        graphs.require(_ALWAYS + (_FUSION if self._fused else ()))
        self._images: LruCache[bytes, Value] = LruCache(
            max_items=_IMAGE_CACHE_ITEMS, max_bytes=options.trunk_cache_mb * _MIB
        )
        self._questions: LruCache[tuple[int, ...], Value] = LruCache(
            max_items=_QUESTION_CACHE_ITEMS, max_bytes=options.question_cache_mb * _MIB
        )

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Answer a batch that is small enough to run at once, in its order."""
        encoded = self._encode(pairs)
        if request.choices:
            return self._score(encoded, len(pairs), request)
        limits = self._limits(request.max_new_tokens)
        decoder = self._decoder(encoded, request.num_beams, request.max_new_tokens)
        if request.num_beams == 1:
            found = greedy_search(decoder, limits)
        else:
            found = beam_search(decoder, limits, width=request.num_beams)
        return [Outcome(generated=generated) for generated in found]

    def stream(self, pair: Pair, request: Request) -> Iterator[Generated]:
        """Greedy decoding: what has been generated so far, after every token."""
        decoder = self._decoder(self._encode([pair]), 1, request.max_new_tokens)
        tokens: tuple[int, ...] = ()
        total = 0.0
        for token, gained in greedy_steps(decoder, self._limits(request.max_new_tokens)):
            tokens, total = (*tokens, int(token[0])), total + float(gained[0])
            yield Generated(tokens=tokens, total_log_probability=total)

    def clear_caches(self) -> None:
        """Forget every image and question."""
        self._images.clear()
        self._questions.clear()

    def _score(self, encoded: Mapping[str, Tensor], questions: int, request: Request) -> list[Outcome]:
        """Likelihoods of all choices for every question, as many choices at once as `max_batch` allows."""
        answers = [choice.ids for choice in request.choices]
        longest = max(len(answer) for answer in answers)
        width = max(1, self._max_batch // questions)
        scored: list[list[Generated]] = [[] for _ in range(questions)]
        for first in range(0, len(answers), width):
            part = answers[first : first + width]
            decoder = self._decoder(encoded, len(part), longest)
            found = score_answers(decoder, part * questions, self._limits(longest))
            for number, row in enumerate(scored):
                row += found[number * len(part) : (number + 1) * len(part)]
        return [Outcome(generated=max(row, key=_likelihood), choices=tuple(row)) for row in scored]

    def _encode(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Everything before the first token: the language encoder's outputs for a batch of pairs."""
        questions = [pair.question for pair in pairs]
        ids, mask = pad(questions, self._generation.pad_token_id)  # (batch, words)
        image = self._image_states([pair.picture for pair in pairs])
        if self._fused:
            states = self._question_states(questions, ids.shape[1])
            fusion = {"trunk_states": image, "question_states": states, "attention_mask": mask}
            image = self._graphs.run("projector", self._graphs.run("vision_fusion", fusion))["image_embeds"]
        language = {"image_embeds": image, "input_ids": ids, "attention_mask": mask}
        return self._graphs.run("language_encoder", language)

    def _image_states(self, pictures: Sequence[Picture]) -> Value:
        """What is kept of the pictures, (1 or batch, tokens, width); with fusion one row serves a batch about one."""
        held: dict[bytes, Value] = {picture.key: picture.memo["states"] for picture in pictures if picture.memo}
        wanted = {picture.key: picture for picture in pictures if picture.key not in held}
        rows, missed = _recall(self._images, wanted, self._run_trunk)
        rows.update(held)
        for picture in pictures:
            picture.memo["states"] = rows[picture.key]
        self._statistics.image_misses += missed
        self._statistics.image_hits += len(rows) - missed
        if len(rows) == 1 and (self._fused or len(pictures) == 1):
            return rows[pictures[0].key]
        return np.concatenate([_host(rows[picture.key]) for picture in pictures])

    def _question_states(self, questions: Sequence[Question], words: int) -> Value:
        """States of the questions, (batch, words, text); the padding is zeros, which the mask hides."""
        rows, missed = _recall(self._questions, {question.ids: question for question in questions}, self._run_questions)
        self._statistics.question_misses += missed
        self._statistics.question_hits += len(rows) - missed
        if len(questions) == 1:
            return rows[questions[0].ids]
        hosts = [_host(rows[question.ids]) for question in questions]
        joined = np.zeros((len(hosts), words, hosts[0].shape[2]), dtype=hosts[0].dtype)
        for number, row in enumerate(hosts):
            joined[number, : row.shape[1]] = row[0]
        return joined

    def _run_questions(self, questions: Sequence[Question]) -> list[Value]:
        """The states of each question without padding, (1, its words, text)."""
        ids, mask = pad(questions, self._generation.pad_token_id)
        states = self._graphs.run("question_encoder", {"input_ids": ids, "attention_mask": mask})["question_states"]
        if len(questions) == 1:
            return [states]
        host = states.numpy()
        return [np.array(host[row : row + 1, : len(question.ids)]) for row, question in enumerate(questions)]

    def _run_trunk(self, pictures: Sequence[Picture]) -> list[Value]:
        with self._statistics.timed("preprocess"):
            dtype = np.dtype(self._graphs.input("vision_trunk", "pixel_values").dtype)
            pixels = np.concatenate([preprocess(picture.rgb, self._image) for picture in pictures]).astype(dtype)
        states = self._graphs.run("vision_trunk", {"pixel_values": pixels})["trunk_states"]
        if not self._fused:
            states = self._graphs.run("projector", {"image_states": states})["image_embeds"]
        return _split(states)

    def _decoder(self, encoded: Mapping[str, Tensor], copies: int, steps: int) -> GraphDecoder:
        """A decoder with `copies` rows for every encoded row."""
        session = self._graphs.sessions["language_decoder"]
        wanted = {spec.name for spec in session.inputs} & set(encoded)
        context: dict[str, Value] = {name: _repeat(encoded[name], copies) for name in sorted(wanted)}
        rows = encoded["encoder_attention_mask"].shape[0] * copies
        capacity = self._capacity(steps)
        cache: KeyValueCache
        if isinstance(session, MakesKeyValueCache):
            cache = session.make_cache(rows, capacity)
        else:
            cache = HostKeyValueCache(session.inputs, rows, capacity)
        return GraphDecoder(self._graphs, context, cache, rows)

    def _capacity(self, steps: int) -> int:
        """Slots for `steps` tokens: as many, or what the graph was built with."""
        axis = self._graphs.input("language_decoder", "past_key.0").shape[2]
        if isinstance(axis, str):
            return steps
        if steps > axis:
            raise ConfigError(
                f"The decoder was built for {axis} tokens, but {steps} are wanted. Ask for at most {axis}."
            )
        return axis

    def _limits(self, max_new_tokens: int) -> Limits:
        spec = self._generation
        return Limits(
            start_token_id=spec.decoder_start_token_id,
            eos_token_id=spec.eos_token_id,
            pad_token_id=spec.pad_token_id,
            max_new_tokens=max_new_tokens,
        )


class GraphDecoder:
    """The language decoder at work on some rows: one graph run a token, its past kept in a cache."""

    def __init__(self, graphs: Graphs, context: Mapping[str, Value], cache: KeyValueCache, rows: int) -> None:
        self.rows = rows
        self._graphs = graphs
        self._context = context
        self._cache = cache

    def step(self, tokens: Integers) -> Array:
        """Feed one token a row, int64 (rows,); returns the logits of the next, (rows, vocab)."""
        inputs: dict[str, Value] = {
            **self._context,
            **self._cache.inputs(),
            "decoder_input_ids": tokens[:, None],
            "cache_length": np.array([self._cache.length], dtype=np.int64),
        }
        outputs = self._graphs.run("language_decoder", inputs)
        self._cache.append(outputs)
        return outputs["logits"].numpy()

    def reorder(self, rows: Integers) -> None:
        """Let row i continue the past of row `rows[i]`; rows of one question share what the encoder gave."""
        self._cache.reorder(rows)


def _specifications(manifest: Manifest) -> tuple[ImageSpec, GenerationSpec]:
    if manifest.image is None or manifest.generation is None or manifest.text is None:
        raise BundleError(
            "The manifest lacks 'image', 'text' or 'generation', which this pipeline needs. Export it again."
        )
    return manifest.image, manifest.generation


def _host(value: Value) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _split(batch: Tensor) -> list[Value]:
    """The rows of a tensor, each (1, ...); a single row stays where it is."""
    if batch.shape[0] == 1:
        return [batch]
    host = batch.numpy()
    return [np.array(host[row : row + 1]) for row in range(host.shape[0])]


def _recall(
    cache: LruCache[K, Value], items: Mapping[K, T], compute: Callable[[Sequence[T]], list[Value]]
) -> tuple[dict[K, Value], int]:
    """A value for every key, from the cache or computed in one batch and kept; and how many were computed."""
    rows = {key: kept for key in items if (kept := cache.get(key)) is not None}
    missing = [key for key in items if key not in rows]
    if missing:
        for key, row in zip(missing, compute([items[key] for key in missing]), strict=True):
            cache.put(key, row, size_bytes=_size_bytes(row))
            rows[key] = row
    return rows, len(missing)


def _size_bytes(value: Value) -> int:
    """Bytes of a kept value; device tensors tell no dtype, so 4 bytes a number are assumed for them."""
    return value.nbytes if isinstance(value, np.ndarray) else math.prod(value.shape) * 4


def _likelihood(generated: Generated) -> float:
    return generated.total_log_probability


def _repeat(value: Tensor, copies: int) -> Value:
    if copies == 1:
        return value
    return value.repeat_rows(copies) if isinstance(value, RepeatsRows) else np.repeat(value.numpy(), copies, axis=0)
