"""Models that tell how well a text fits a picture: dual encoders such as CLIP, and image-text matching heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from edgevqa.runtime.caches import LruCache
from edgevqa.runtime.decoding import Floats, Generated
from edgevqa.runtime.errors import BundleError, NotFiniteError, QuestionError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import Outcome, Pair, Picture, PipelineOptions, Request
from edgevqa.runtime.pipelines.values import MIB, Value, host, join, recall, repeat, size_bytes, split
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.similarity import Float32s, cosines, log_probabilities, log_sigmoid, logits
from edgevqa.runtime.text import Question, pad_ids

VISION, IMAGE_ENCODER, TEXT_ENCODER, MATCHER = "vision", "image_encoder", "text_encoder", "matcher"
IMAGE_EMBEDS, TEXT_EMBEDS, MATCH_LOGITS = "image_embeds", "text_embeds", "match_logits"
_PREPARED = "prepared"
_ITEMS = 4096
_LEAST = 1e-6  # a confidence lies above 0, and a cosine need not

Ids: TypeAlias = "tuple[int, ...]"
Values: TypeAlias = "dict[str, Value]"


class Row(msgspec.Struct, frozen=True):
    """One row of a graph's batch: a picture's values, each (1, ...), and a text's tokens."""

    values: Values
    ids: Ids = ()


class MatchingFlow:
    """A text's score for a picture.

    Dual encoders have `image_encoder` and `text_encoder`: the cosine of their embeddings, of which `manifest.matching`
    makes a probability. Others have `matcher`, which reads picture and text together: the processor's inputs, or what
    `vision` made of them. With both, the matcher answers, and the encoders give embeddings. What a graph makes of a
    picture or a text alone is kept for further calls.

    With choices these are the texts, and the question does not matter. Without, the answer is "yes" or "no"; only a dual
    encoder with softmax, which knows no probability of a single text, answers the cosine, also as confidence.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when a graph or a part of the manifest is missing."""
        if manifest.image is None or manifest.text is None:
            raise BundleError("The manifest lacks 'image' or 'text', which this pipeline needs. Export it again.")
        self.embeds = IMAGE_ENCODER in graphs or TEXT_ENCODER in graphs or MATCHER not in graphs
        if self.embeds:
            graphs.require((IMAGE_ENCODER, TEXT_ENCODER))
        self._matches = MATCHER in graphs
        if not self._matches and manifest.matching is None:
            raise BundleError("The manifest lacks 'matching', which dual encoders need. Export the bundle again.")
        self._graphs, self._statistics = graphs, graphs.statistics
        self._image, self._text, self._matching = manifest.image, manifest.text, manifest.matching
        self._activation = "softmax" if manifest.matching is None else manifest.matching.activation
        self._seen_by_vision = {spec.name for spec in graphs.sessions[VISION].outputs} if VISION in graphs else set()
        self._max_batch = options.max_batch
        self._pictures: LruCache[tuple[str, bytes], Values] = LruCache(
            max_items=_ITEMS, max_bytes=options.trunk_cache_mb * MIB
        )
        self._texts: LruCache[Ids, Value] = LruCache(max_items=_ITEMS, max_bytes=options.question_cache_mb * MIB)

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """The likeliest choice of every pair with everyone's score, or how well the question fits the picture.

        Raises `QuestionError` for an empty question without choices.
        """
        if not request.choices and not all(pair.question.asked.strip() for pair in pairs):
            raise QuestionError("The question is empty. Give a text that is compared with the picture, or choices.")
        chosen = [choice.ids for choice in request.choices]
        texts = [chosen or [pair.question.ids] for pair in pairs]
        pictures = [pair.picture for pair in pairs]
        if self._matches:
            found = self._match(pictures, texts)
            return [self._rank(each, request) if chosen else _verdict(each[0]) for each in found]
        return [self._outcome(each, request) for each in self._compare(pictures, texts)]

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """The whole answer at once."""
        yield from self.answer([pair], request)

    def clear_caches(self) -> None:
        """Forget every picture and text."""
        self._pictures.clear()
        self._texts.clear()

    def embed_images(self, pictures: Sequence[Picture]) -> Float32s:
        """Normalised embeddings, (pictures, width), or (pictures, vectors, width) of models that see several."""
        seen = self._see(IMAGE_ENCODER, pictures)
        rows = [host(seen[picture.key][IMAGE_EMBEDS]) for picture in pictures]
        return _finite(np.concatenate(rows).astype(np.float32, copy=False))

    def embed_texts(self, questions: Sequence[Question]) -> Float32s:
        """Normalised embeddings, (texts, width)."""
        return _finite(self._embed_ids([question.ids for question in questions]).astype(np.float32, copy=False))

    def _compare(self, pictures: Sequence[Picture], texts: Sequence[Sequence[Ids]]) -> list[Floats]:
        """Of each picture the cosines with its texts."""
        images = self.embed_images(pictures)
        everyone = list(dict.fromkeys(ids for row in texts for ids in row))
        places = {ids: place for place, ids in enumerate(everyone)}
        similarity = cosines(images, self._embed_ids(everyone))
        return [similarity[row, [places[ids] for ids in each]] for row, each in enumerate(texts)]

    def _match(self, pictures: Sequence[Picture], texts: Sequence[Sequence[Ids]]) -> list[Floats]:
        """Of each picture the matcher's log-odds that its texts fit."""
        needed = set(self._graphs.inputs(MATCHER))
        if needed & self._seen_by_vision:
            seen = self._see(VISION, pictures)
            values = [seen[picture.key] for picture in pictures]
        else:
            values = [self._prepared(picture) for picture in pictures]
        rows = [Row(each, ids) for each, own in zip(values, texts, strict=True) for ids in own]
        found = iter([host(row[MATCH_LOGITS]) for row in self._run(MATCHER, rows)])
        return [np.array([_log_odds(next(found)) for _ in own]) for own in texts]

    def _outcome(self, similarity: Floats, request: Request) -> Outcome:
        """What a dual encoder's cosines say."""
        if self._matching is None:
            raise BundleError("The manifest lacks 'matching', which dual encoders need. Export the bundle again.")
        values = logits(similarity, self._matching)
        if request.choices:
            return self._rank(values, request)
        if self._activation == "sigmoid":
            return _verdict(values[0])
        cosine = float(similarity[0])
        found = Generated(tokens=(), total_log_probability=float(np.log(max(cosine, _LEAST))))
        return Outcome(generated=found, text=f"{round(cosine, 2) + 0.0:.2f}")  # + 0.0: no "-0.00"

    def _rank(self, values: Floats, request: Request) -> Outcome:
        """The likeliest of the choices, whose logits are `values`."""
        found = log_probabilities(values, self._activation)
        choices = tuple(
            # what is told of an answer is the mean over its tokens
            Generated(tokens=choice.ids, total_log_probability=float(each) * max(len(choice.ids), 1))
            for choice, each in zip(request.choices, found, strict=True)
        )
        scores = {choice.text: float(np.exp(each)) for choice, each in zip(request.choices, found, strict=True)}
        return Outcome(generated=choices[int(values.argmax())], choices=choices, scores=scores)

    def _embed_ids(self, texts: Sequence[Ids]) -> Array:
        """Embeddings of texts, (texts, width), computed where they are not known."""
        rows, missed = recall(self._texts, {ids: ids for ids in texts}, self._read, size_bytes)
        self._statistics.question_misses += missed
        self._statistics.question_hits += len(rows) - missed
        return np.concatenate([host(rows[ids]) for ids in texts])

    def _read(self, texts: Sequence[Ids]) -> list[Value]:
        return [row[TEXT_EMBEDS] for row in self._run(TEXT_ENCODER, [Row({}, ids) for ids in texts])]

    def _see(self, graph: str, pictures: Sequence[Picture]) -> dict[bytes, Values]:
        """What a graph gives of each picture, by the picture's key, computed where it is not known."""
        found, missed = self._recall(graph, pictures)
        self._statistics.image_misses += missed
        self._statistics.image_hits += len(found) - missed
        return found

    def _recall(self, graph: str, pictures: Sequence[Picture]) -> tuple[dict[bytes, Values], int]:
        held: dict[bytes, Values] = {picture.key: picture.memo[graph] for picture in pictures if graph in picture.memo}
        wanted = {(graph, picture.key): picture for picture in pictures if picture.key not in held}
        rows, missed = recall(self._pictures, wanted, lambda missing: self._look(graph, missing), _values_bytes)
        found = {key: values for (_, key), values in rows.items()} | held
        for picture in pictures:
            picture.memo[graph] = found[picture.key]
        return found, missed

    def _look(self, graph: str, pictures: Sequence[Picture]) -> list[Values]:
        """Run a graph on pictures, or on what `vision` gave of them, where it takes that."""
        if self._seen_by_vision & set(self._graphs.inputs(graph)):
            seen, _ = self._recall(VISION, pictures)
            return self._run(graph, [Row(seen[picture.key]) for picture in pictures])
        found = self._run(graph, [Row(self._prepared(picture)) for picture in pictures])
        for picture in pictures:
            picture.memo.pop(_PREPARED)  # the pixels are not kept
        return found

    def _prepared(self, picture: Picture) -> Values:
        """What the processor makes of a picture, once a call."""
        if _PREPARED not in picture.memo:
            with self._statistics.timed("preprocess"):
                picture.memo[_PREPARED] = dict(prepare(picture.rgb, self._image).inputs)
        values: Values = picture.memo[_PREPARED]
        return values

    def _run(self, graph: str, rows: Sequence[Row]) -> list[Values]:
        """A graph's outputs of every row, each (1, ...); at most `max_batch` rows that are alike run at once."""
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(tuple(tuple(value.shape) for value in row.values.values()), []).append(place)
        found: dict[int, Values] = {}
        for places in alike.values():
            for first in range(0, len(places), self._max_batch):
                part = places[first : first + self._max_batch]
                outputs = self._graphs.run(graph, self._feeds(graph, [rows[place] for place in part]))
                split_up = {name: split(value) for name, value in outputs.items()}
                for number, place in enumerate(part):
                    found[place] = {name: values[number] for name, values in split_up.items()}
        return [found[place] for place in range(len(rows))]

    def _feeds(self, graph: str, rows: Sequence[Row]) -> Values:
        """The graph's inputs for a batch. Raises `BundleError` for one that nothing gives."""
        specs = self._graphs.inputs(graph)
        known: Values = {}
        if "input_ids" in specs:
            known["input_ids"], known["attention_mask"] = self._padded(rows, specs["input_ids"].shape[1])
        for name in rows[0].values:
            if name in specs:
                values = _batch([row.values[name] for row in rows], broadcast=specs[name].shape[0] != "batch")
                known[name] = _cast(values, specs[name].dtype)
        if missing := set(specs) - set(known):
            raise BundleError(
                f"The graph '{graph}' takes {', '.join(sorted(missing))}, which neither the processor nor another graph "
                "gives. Export the bundle again."
            )
        return {name: known[name] for name in specs}

    def _padded(self, rows: Sequence[Row], words: int | str) -> tuple[Array, Array]:
        """Ids and mask of a batch, to the longest text, or to `words` where the graph takes that length alone."""
        ids, mask = pad_ids([row.ids for row in rows], self._text.pad_token_id)
        if isinstance(words, int) and ids.shape[1] < words:
            more = ((0, 0), (0, words - ids.shape[1]))
            return np.pad(ids, more, constant_values=self._text.pad_token_id), np.pad(mask, more)
        return ids, mask


def has_embeddings(manifest: Manifest) -> bool:
    """Whether a manifest's model gives a picture and a text a place in one space, without loading it."""
    graphs = {graph for variant in manifest.variants.values() for graph in variant.graphs}
    return manifest.pipeline == "matching" and (bool(graphs & {IMAGE_ENCODER, TEXT_ENCODER}) or MATCHER not in graphs)


def _verdict(value: float) -> Outcome:
    """Yes or no, from the log-odds of yes."""
    yes, no = float(log_sigmoid(value)), float(log_sigmoid(-value))
    text, likelihood = ("yes", yes) if yes >= no else ("no", no)
    scores = {"yes": float(np.exp(yes)), "no": float(np.exp(no))}
    return Outcome(generated=Generated(tokens=(), total_log_probability=likelihood), text=text, scores=scores)


def _log_odds(row: Array) -> float:
    """Of `match_logits` (1, 2), no and yes, or (1, 1)."""
    values = row[0].astype(np.float64)
    return float(values[1] - values[0]) if len(values) == 2 else float(values[0])


def _batch(rows: Sequence[Value], *, broadcast: bool) -> Value:
    """Rows one after the other; of one picture a single row where the graph repeats it itself."""
    if any(row is not rows[0] for row in rows):
        return join(rows)
    return rows[0] if broadcast else repeat(rows[0], len(rows))


def _cast(value: Value, dtype: str) -> Value:
    """Host arrays in the graph's type; a graph may be of FP16."""
    if isinstance(value, np.ndarray) and value.dtype != np.dtype(dtype):
        return value.astype(np.dtype(dtype))
    return value


def _finite(embeddings: Float32s) -> Float32s:
    """Embeddings that can be compared. Raises `NotFiniteError` for others, which a search would rank and remember."""
    if not np.isfinite(embeddings).all():
        raise NotFiniteError("embeddings")
    return embeddings


def _values_bytes(values: Values) -> int:
    return sum(size_bytes(value) for value in values.values())
