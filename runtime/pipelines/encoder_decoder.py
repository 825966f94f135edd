"""Models whose decoder attends to what an encoder gave, such as QA-ViT with T5, BLIP, or a ViT with GPT-2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from edgevqa.runtime.axes import CROSS, ENCODER_MASK
from edgevqa.runtime.caches import KeyValueCache, make_cache
from edgevqa.runtime.decoding import Decoder, Generated, Integers, Limits, greedy_steps, search
from edgevqa.runtime.decoding import score_answers as score
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.penalty import PenalizedDecoder
from edgevqa.runtime.pipelines.base import Outcome, Pair, PipelineOptions, Request
from edgevqa.runtime.pipelines.image_side import OUTPUT, ImageSide, question_inputs
from edgevqa.runtime.pipelines.values import Value, repeat
from edgevqa.runtime.sessions.base import Array

ENCODER, DECODER = "language_encoder", "language_decoder"


class EncoderDecoderFlow:
    """An `ImageSide`, then `language_encoder` once a pair and `language_decoder` once a token.

    The encoder reads the question (`input_ids`, `attention_mask`; padded in a batch, with the true mask). Where there is none,
    the image side gives the keys and values that the decoder attends to, and the question is what the answer begins with: a
    caption's prompt, which the decoder reads first.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when a graph or a part of the manifest is missing."""
        if manifest.generation is None or manifest.text is None:
            raise BundleError("The manifest lacks 'text' or 'generation', which this pipeline needs. Export it again.")
        self._generation = manifest.generation
        graphs.require((DECODER,))
        self._prompted = ENCODER_MASK not in graphs.inputs(DECODER)
        if not self._prompted:
            graphs.require((ENCODER,))
        crossed = [name for name in graphs.inputs(DECODER) if name.startswith(CROSS)] if self._prompted else [OUTPUT]
        graphs.require_outputs(crossed)
        if self._prompted:  # keys and values of every layer are many times as large as embeddings
            options = msgspec.structs.replace(options, trunk_cache_mb=options.prefix_cache_mb)
        self._image_side = ImageSide(graphs, manifest, options, outputs=crossed)
        self._graphs = graphs
        self._max_batch = options.max_batch

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """Answer a batch that is small enough to run at once, in its order."""
        prompts = [self._prompt(pair) for pair in pairs]
        found: dict[int, Outcome] = {}
        for length in sorted({len(prompt) for prompt in prompts}):  # rows decode in step: prompts must be as long
            places = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
            outcomes = self._answer([pairs[place] for place in places], [prompts[place] for place in places], request)
            found.update(zip(places, outcomes, strict=True))
        return [found[number] for number in range(len(pairs))]

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """Greedy decoding: what has been generated so far, after every token."""
        prompt = self._prompt(pair)
        decoder = self._penalized(self._decoder(self._encode([pair]), [prompt], 1, request.max_new_tokens))
        tokens: tuple[int, ...] = ()
        total = 0.0
        for token, gained in greedy_steps(decoder, self._limits(request.max_new_tokens)):
            tokens, total = (*tokens, int(token[0])), total + float(gained[0])
            yield Outcome(generated=Generated(tokens=tokens, total_log_probability=total), prompt=prompt)

    def clear_caches(self) -> None:
        """Forget every image and question."""
        self._image_side.clear()

    def _prompt(self, pair: Pair) -> tuple[int, ...]:
        return pair.question.ids if self._prompted else ()

    def _answer(self, pairs: Sequence[Pair], prompts: list[tuple[int, ...]], request: Request) -> list[Outcome]:
        encoded = self._encode(pairs)
        if request.choices:
            return self._score(encoded, prompts, request)
        decoder = self._penalized(self._decoder(encoded, prompts, request.num_beams, request.max_new_tokens))
        limits = self._limits(request.max_new_tokens)
        found = search(decoder, limits, num_beams=request.num_beams, length_penalty=self._generation.length_penalty)
        return [Outcome(generated=each, prompt=prompt) for each, prompt in zip(found, prompts, strict=True)]

    def _score(self, encoded: Mapping[str, Value], prompts: list[tuple[int, ...]], request: Request) -> list[Outcome]:
        """Likelihoods of all choices for every question, as many choices at once as `max_batch` allows."""
        answers = [choice.ids for choice in request.choices]
        longest = max(len(answer) for answer in answers)
        width = max(1, self._max_batch // len(prompts))
        scored: list[list[Generated]] = [[] for _ in prompts]
        for first in range(0, len(answers), width):
            part = answers[first : first + width]
            decoder = self._decoder(encoded, prompts, len(part), longest)
            found = score(decoder, part * len(prompts), self._limits(longest))
            for number, row in enumerate(scored):
                row += found[number * len(part) : (number + 1) * len(part)]
        return [Outcome(generated=max(row, key=_likelihood), choices=tuple(row)) for row in scored]

    def _encode(self, pairs: Sequence[Pair]) -> dict[str, Value]:
        """Everything before the first token: what the decoder attends to, for a batch of pairs."""
        if self._prompted:
            return self._image_side.values(pairs)
        values: dict[str, Value] = {OUTPUT: self._image_side.embeds(pairs)}
        values |= question_inputs([pair.question for pair in pairs], self._generation.pad_token_id)
        return {**self._graphs.run(ENCODER, {name: values[name] for name in self._graphs.inputs(ENCODER)})}

    def _decoder(
        self, encoded: Mapping[str, Value], prompts: list[tuple[int, ...]], copies: int, steps: int
    ) -> GraphDecoder:
        """A decoder with `copies` rows for every encoded row."""
        session = self._graphs.sessions[DECODER]
        wanted = {spec.name for spec in session.inputs} & set(encoded)
        context: dict[str, Value] = {name: repeat(encoded[name], copies) for name in sorted(wanted)}
        rows = len(prompts) * copies
        cache = make_cache(session, rows, self._capacity(steps, len(prompts[0])))
        given = np.array([prompt for prompt in prompts for _ in range(copies)], dtype=np.int64).reshape(rows, -1)
        return GraphDecoder(self._graphs, context, cache, given)

    def _penalized(self, decoder: GraphDecoder) -> Decoder:
        """The decoder that generates freely; given answers are scored without a penalty."""
        penalty = self._generation.repetition_penalty
        return decoder if penalty == 1.0 else PenalizedDecoder(decoder, penalty, decoder.prompts, starts=True)

    def _capacity(self, steps: int, prompt: int) -> int:
        """Slots for `steps` tokens after a prompt: as many, or what the graph was built with."""
        axis = self._graphs.input(DECODER, "past_key.0").shape[2]
        most = axis if isinstance(axis, int) else self._generation.max_context
        if most is not None and prompt + steps > most:
            asked = f" after a prompt of {prompt}" if prompt else ""
            advice = f"Ask for at most {most - prompt}" if prompt < most else "Give a shorter prompt"
            raise ConfigError(f"The decoder takes {most} tokens, but {steps} are wanted{asked}. {advice}.")
        return axis if isinstance(axis, int) else prompt + steps

    def _limits(self, max_new_tokens: int) -> Limits:
        return Limits.of(self._generation, max_new_tokens)


class GraphDecoder:
    """The language decoder at work on some rows: a graph run a token, and one for all of a prompt; the past is in a cache."""

    def __init__(self, graphs: Graphs, context: Mapping[str, Value], cache: KeyValueCache, prompts: Integers) -> None:
        """`prompts`, int64 (rows, length), are read with the first token, before anything is generated."""
        self.rows = len(prompts)
        self._graphs = graphs
        self._context = context
        self._cache = cache
        self.prompts: list[list[int]] = prompts.tolist()
        self._prompts: Integers | None = prompts

    def step(self, tokens: Integers) -> Array:
        """Feed one token a row, int64 (rows,); returns the logits of the next, (rows, vocab)."""
        prompts, self._prompts = self._prompts, None
        chunk = tokens[:, None]
        if prompts is not None:
            chunk = np.concatenate([chunk, prompts], axis=1)
        inputs: dict[str, Value] = {
            **self._context,
            **self._cache.inputs(),
            "decoder_input_ids": chunk,
            "cache_length": np.array([self._cache.length], dtype=np.int64),
        }
        outputs = self._graphs.run(DECODER, inputs)
        self._cache.append(outputs)
        return outputs["logits"].numpy()

    def reorder(self, rows: Integers) -> None:
        """Let row i continue the past of row `rows[i]`; rows of one question share what the encoder gave."""
        self._cache.reorder(rows)


def _likelihood(generated: Generated) -> float:
    return generated.total_log_probability
