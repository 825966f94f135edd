"""Decoder-only models such as LLaVA: a prompt with a picture in it, read in chunks, then one token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from edgevqa.runtime.caches import KeyValueCache, LruCache, make_cache
from edgevqa.runtime.decoding import Decoder, Generated, Integers, Limits, greedy_steps, score_answers, search
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.penalty import PenalizedDecoder
from edgevqa.runtime.pipelines.base import Outcome, Pair, PipelineOptions, Request
from edgevqa.runtime.pipelines.image_side import ImageSide
from edgevqa.runtime.pipelines.positions import place
from edgevqa.runtime.pipelines.values import MIB, Value, host, repeat, size_bytes
from edgevqa.runtime.preprocessing import Prepared
from edgevqa.runtime.sessions.base import Array
from edgevqa.runtime.text import pad_ids

DECODER = "language_decoder"
PREFILL = "prefill"
"""The stage in which the decoder reads prompts; as `language_decoder` the time of single tokens is counted."""
_PREFIX_CACHE_ITEMS = 256


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """What the part of a prompt that ends with the picture takes: `length` places, of which `slots` are the picture's.

    `next_position` is that of the next token; `ids` are all that is read, tokens between the picture's tiles among them.
    """

    length: int
    slots: int
    next_position: int
    ids: tuple[int, ...]


class Prefix(Extent, frozen=True, kw_only=True):
    """That part as the decoder has read it: `states` are its `new_key.N` and `new_value.N` (1, heads, length, head)."""

    states: dict[str, Value]


class _Head(msgspec.Struct, frozen=True):
    """That part before it is read: positions (1 or 3, length), ids and what they take."""

    positions: Integers
    extent: Extent


class DecoderOnlyFlow:
    """An `ImageSide`, then `language_decoder` for chunks of the prompt and for every token.

    Where the embeddings of a picture do not depend on the question, the keys and values of the prompt up to the picture's
    end are kept for further questions. Shorter prompts of a batch are padded on the left, and masked.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when a graph or a part of the manifest is missing."""
        text = manifest.text
        if manifest.generation is None or text is None or text.image_token_id is None:
            raise BundleError(
                "The manifest lacks 'generation', 'text' or its 'image_token_id', which this pipeline needs. Export it again."
            )
        self._generation, self._image_token = manifest.generation, text.image_token_id
        self._image_side = ImageSide(graphs, manifest, options)
        self._fixed = manifest.image is not None and manifest.image.processor == "fixed"
        graphs.require((DECODER,))
        self._graphs = graphs
        self._max_batch = options.max_batch
        self._prefixes: LruCache[tuple[bytes, tuple[int, ...]], Prefix] = LruCache(
            max_items=_PREFIX_CACHE_ITEMS, max_bytes=options.prefix_cache_mb * MIB
        )

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Answer a batch that is small enough to run at once, in its order."""
        if request.choices:
            return self._score(pairs, request)
        decoder = self._decoder(pairs, request.num_beams, request.max_new_tokens)
        limits = Limits.of(self._generation, request.max_new_tokens)
        found = search(decoder, limits, num_beams=request.num_beams, length_penalty=self._generation.length_penalty)
        return [Outcome(generated=each) for each in found]

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """Greedy decoding: what has been generated so far, after every token."""
        decoder = self._decoder([pair], 1, request.max_new_tokens)
        tokens: tuple[int, ...] = ()
        total = 0.0
        for token, gained in greedy_steps(decoder, Limits.of(self._generation, request.max_new_tokens)):
            tokens, total = (*tokens, int(token[0])), total + float(gained[0])
            yield Outcome(generated=Generated(tokens=tokens, total_log_probability=total))

    def clear_caches(self) -> None:
        """Forget every image and question."""
        self._image_side.clear()
        self._prefixes.clear()

    def _score(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Likelihoods of all choices for every question, as many choices at once as `max_batch` allows."""
        answers = [choice.ids for choice in request.choices]
        longest = max(len(answer) for answer in answers)
        width = max(1, self._max_batch // len(pairs))
        scored: list[list[Generated]] = [[] for _ in pairs]
        for first in range(0, len(answers), width):
            part = answers[first : first + width]
            decoder = self._prompted(pairs, len(part), longest)  # given answers are scored without a penalty
            found = score_answers(decoder, part * len(pairs), Limits.of(self._generation, longest))
            for number, row in enumerate(scored):
                row += found[number * len(part) : (number + 1) * len(part)]
        return [Outcome(generated=max(row, key=_likelihood), choices=tuple(row)) for row in scored]

    def _decoder(self, pairs: Sequence[Pair], copies: int, steps: int) -> Decoder:
        """A decoder that has read every prompt, with `copies` rows for each."""
        decoder, penalty = self._prompted(pairs, copies, steps), self._generation.repetition_penalty
        if penalty == 1.0:
            return decoder
        read = [(*own, *pair.question.ids) for own, pair in zip(decoder.heads, pairs, strict=True)]
        prompts = [ids for ids in read for _ in range(copies)]
        return PenalizedDecoder(decoder, penalty, prompts, starts=False)

    def _prompted(self, pairs: Sequence[Pair], copies: int, steps: int) -> PromptedDecoder:
        prefixes, rests = self._prefixes_of(pairs, steps)
        longest = max(prefix.length for prefix in prefixes)
        ids, mask = pad_ids(rests, self._generation.pad_token_id, left=True)
        used = longest + ids.shape[1]
        state = _Rows(self._graphs, len(pairs), self._capacity(used + steps))
        state.put(_stack([prefix.states for prefix in prefixes], longest), _lengths_mask(prefixes, longest))
        starts = np.array([prefix.next_position for prefix in prefixes], dtype=np.int64)
        positions = starts[:, None] + np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        logits = state.feed(_Chunk(ids, mask, positions))
        state.next_positions = starts + mask.sum(axis=1)
        if copies > 1:
            state, logits = state.repeated(copies), np.repeat(logits, copies, axis=0)
        return PromptedDecoder(state, logits, [prefix.ids for prefix in prefixes])

    def _prefixes_of(self, pairs: Sequence[Pair], steps: int) -> tuple[list[Prefix], list[tuple[int, ...]]]:
        """What every pair's prompt begins with, up to the picture's end, and the ids that follow.

        Raises `ConfigError` for a prompt that leaves no room for `steps` more tokens, before the decoder reads it.
        """
        found: list[Prefix] = []
        rests: list[tuple[int, ...]] = []
        known: dict[tuple[bytes, tuple[int, ...]], Prefix] = {}
        rows: list[tuple[Value, Prepared]] = []
        for number, pair in enumerate(pairs):
            ids = pair.question.ids
            if self._image_token not in ids:
                raise BundleError(f"The prompt has no image token {self._image_token}. Export the bundle again.")
            cut = len(ids) - ids[::-1].index(self._image_token)
            head, rest = ids[:cut], ids[cut:] or (self._generation.pad_token_id,)
            key = (pair.picture.key, head)
            more = len(rest) + steps
            prefix = None if self._image_side.asks else known.get(key) or self._prefixes.get(key)
            if prefix is None:
                rows = rows or self._image_side.rows(pairs)
                embeds, prepared = rows[number]
                placed = self._place(head, embeds.shape[1], prepared)
                self._check_room(placed.extent, more, pair)
                prefix = self._read(placed, embeds)
                self._prefixes.put(key, prefix, size_bytes=sum(map(size_bytes, prefix.states.values())))
            else:
                self._check_room(prefix, more, pair)
            known[key] = prefix
            found.append(prefix)
            rests.append(rest)
        return found, rests

    def _place(self, head: tuple[int, ...], embeddings: int, prepared: Prepared) -> _Head:
        """The part of a prompt that ends with the picture, with a place for each of the picture's embeddings."""
        slots = (self._image_token,) * embeddings if prepared.expansion is None else prepared.expansion
        ids = [each for token in head for each in (slots if token == self._image_token else (token,))]
        wide = len(self._graphs.input(DECODER, "position_ids").shape) == 3
        positions, following = place(ids, self._image_token, prepared.grids if wide else ())
        extent = Extent(length=len(ids), slots=len(ids) - len(head) + 1, next_position=following, ids=tuple(ids))
        return _Head(positions[:, None] if wide else positions, extent)

    def _read(self, head: _Head, embeds: Value) -> Prefix:
        """Run the decoder on the part of a prompt that ends with the picture."""
        state = _Rows(self._graphs, 1, self._capacity(1))
        tokens = np.array([head.extent.ids], dtype=np.int64)
        chunk = _Chunk(tokens, np.ones_like(tokens), head.positions)
        state.feed(chunk, Images(embeds, _image_index(tokens, self._image_token)))
        kept = {name: value for name, value in state.last.items() if name.startswith(("new_key.", "new_value."))}
        return Prefix(states=kept, **msgspec.structs.asdict(head.extent))

    def _capacity(self, slots: int) -> int:
        """Room for `slots` tokens: as many, or what the graph was built with."""
        axis = self._graphs.input(DECODER, "past_key.0").shape[2]
        if not isinstance(axis, int):
            return slots
        if slots > axis:  # each row had room: they are of different lengths
            raise ConfigError(
                f"Pictures, questions and answers of a batch take {slots} places together, but the model has {axis}. "
                "Load it with a smaller max_batch, or ask for shorter answers."
            )
        return axis

    def _check_room(self, prompt: Extent, more: int, pair: Pair) -> None:
        """Raise `ConfigError` where the model has no place or no position for `more` tokens after a prompt's beginning."""
        axis = self._graphs.input(DECODER, "past_key.0").shape[2]
        limits = (
            ("places", prompt.length + more, axis if isinstance(axis, int) else None),
            ("places", prompt.length + more, self._generation.max_context),
            ("positions", prompt.next_position + more, self._generation.max_positions),
        )
        for what, taken, most in limits:
            if most is not None and taken > most:
                raise ConfigError(
                    f"{'Pictures' if pair.picture.parts else 'Picture'}, question and answer take {taken} {what} together, "
                    f"but the model has {most}. {self._shorten(prompt, taken, pair)}"
                )

    def _shorten(self, prompt: Extent, taken: int, pair: Pair) -> str:
        """What to do about a prompt and answer that take too many places: less of what takes most of them."""
        if 2 * prompt.slots < taken or (self._fixed and not pair.picture.parts):
            return "Ask for a shorter answer, or ask a shorter question."
        if not pair.picture.parts:
            return f"The picture takes {prompt.slots} places: give a smaller one, or ask for a shorter answer."
        count = len(pair.picture.parts)
        return f"The {count} pictures take {prompt.slots} places: ask about fewer of them, or give smaller ones."


class _Chunk(msgspec.Struct, frozen=True):
    """Tokens to read, int64 (rows, length): ids, 1 where there is one, and positions, which may be (3, rows, length)."""

    ids: Integers
    mask: Integers
    positions: Integers


class Images(msgspec.Struct, frozen=True):
    """What stands for pictures in a chunk: embeddings (rows, slots, hidden), and for every place its slot or -1."""

    embeds: Value
    index: Integers


class _Rows:
    """Rows that the decoder works on: their cache, which of its slots hold tokens, and each row's next position."""

    def __init__(self, graphs: Graphs, rows: int, capacity: int) -> None:
        self.graphs = graphs
        self.rows, self.capacity = rows, capacity
        self.cache: KeyValueCache = make_cache(graphs.sessions[DECODER], rows, capacity)
        self.seen = np.zeros((rows, capacity), dtype=np.int64)
        self.next_positions = np.zeros(rows, dtype=np.int64)
        self.last: dict[str, Value] = {}
        self._written: list[dict[str, Value]] = []
        self._inputs = graphs.inputs(DECODER)

    def put(self, states: dict[str, Value], mask: Integers) -> None:
        """Write keys and values into the next slots; `mask`, int64 (rows, slots), tells which are tokens."""
        first = self.cache.length
        self.cache.append(states)
        stop = self.cache.length
        self.seen[:, first:stop] = mask[:, : stop - first]
        self._written.append(states)

    def feed(self, chunk: _Chunk, images: Images | None = None, *, stage: str = PREFILL) -> Array:
        """Read a chunk; returns the logits after its last token, (rows, vocab)."""
        positions = chunk.positions
        if len(self._inputs["position_ids"].shape) == 3 and positions.ndim == 2:
            positions = np.repeat(positions[None], 3, axis=0)
        images = images or self._no_images(chunk.ids)
        inputs: dict[str, Value] = {
            "input_ids": chunk.ids,
            "image_embeds": images.embeds,
            "image_index": images.index,
            "position_ids": positions,
            "past_attention_mask": self.seen,
            "attention_mask": chunk.mask,
            **self.cache.inputs(),
        }
        self.last = {**self.graphs.run(DECODER, inputs, stage=stage)}
        self.put(self.last, chunk.mask)
        return host(self.last["logits"])

    def _no_images(self, ids: Integers) -> Images:
        spec = self._inputs["image_embeds"]
        embeds = np.zeros((self.rows, 1, int(spec.shape[2])), dtype=np.dtype(spec.dtype))
        return Images(embeds, np.full_like(ids, -1))

    def reorder(self, rows: Integers) -> None:
        """Let row i continue what row `rows[i]` began."""
        self.cache.reorder(rows)
        self.seen, self.next_positions = self.seen[rows], self.next_positions[rows]

    def repeated(self, copies: int) -> _Rows:
        """The same rows, each `copies` times."""
        wide = _Rows(self.graphs, self.rows * copies, self.capacity)
        mask = np.repeat(self.seen, copies, axis=0)
        for states in self._written:
            names = [name for name in states if name.startswith(("new_key.", "new_value."))]
            length, first = states[names[0]].shape[2], wide.cache.length
            wide.put({name: repeat(states[name], copies) for name in names}, mask[:, first : first + length])
        wide.next_positions = np.repeat(self.next_positions, copies)
        return wide


class PromptedDecoder:
    """A decoder whose rows have read their prompts: the first step gives what these led to, whatever it is fed.

    `heads` are the ids that each prompt began with, up to the picture's end.
    """

    def __init__(self, state: _Rows, logits: Array, heads: Sequence[tuple[int, ...]]) -> None:
        self.rows, self.heads = state.rows, heads
        self._state = state
        self._first: Array | None = logits

    def step(self, tokens: Integers) -> Array:
        """Feed one token a row, int64 (rows,); returns the logits of the next, (rows, vocab)."""
        first, self._first = self._first, None
        if first is not None:
            return first
        state = self._state
        ones = np.ones((self.rows, 1), dtype=np.int64)
        logits = state.feed(_Chunk(tokens[:, None], ones, state.next_positions[:, None]), stage=DECODER)
        state.next_positions = state.next_positions + 1
        return logits

    def reorder(self, rows: Integers) -> None:
        """Let row i continue the past of row `rows[i]`."""
        self._state.reorder(rows)


def _image_index(ids: Integers, image_token: int) -> Integers:
    """Int64 like `ids` (rows, length): the number of each place of an image token in its row, -1 elsewhere."""
    images = ids == image_token
    return np.where(images, np.cumsum(images, axis=1) - 1, -1)


def _stack(states: Sequence[dict[str, Value]], longest: int) -> dict[str, Value]:
    """Keys and values of several prefixes, (rows, heads, longest, head), each at the end of its row."""
    if len(states) == 1:
        return states[0]
    joined: dict[str, Value] = {}
    for name in states[0]:
        rows = [host(state[name]) for state in states]
        _, heads, _, head = rows[0].shape
        value = np.zeros((len(rows), heads, longest, head), dtype=rows[0].dtype)
        for number, row in enumerate(rows):
            value[number, :, longest - row.shape[2] :] = row[0]
        joined[name] = value
    return joined


def _lengths_mask(prefixes: Sequence[Prefix], longest: int) -> Integers:
    """Int64 (rows, longest): 1 where a row, which ends at the right, has tokens."""
    lengths = np.array([prefix.length for prefix in prefixes])
    return (np.arange(longest)[None] >= longest - lengths[:, None]).astype(np.int64)


def _likelihood(generated: Generated) -> float:
    return generated.total_log_probability
