"""From pictures to the embeddings that a language model reads: what runs once a picture, and what once a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgevqa.runtime.caches import LruCache
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import ImageSpec, Manifest
from edgevqa.runtime.pipelines.base import Pair, Picture, PipelineOptions
from edgevqa.runtime.pipelines.pictures import join_prepared
from edgevqa.runtime.pipelines.values import MIB, Value, host, join, recall, size_bytes, split
from edgevqa.runtime.preprocessing import Prepared, prepare
from edgevqa.runtime.sessions.base import Tensor
from edgevqa.runtime.text import Question, pad_ids

STAGES = ("vision", "vision_trunk", "vision_fusion", "qformer", "projector")
"""The graphs between a picture and `image_embeds`, in the order in which they run; a model has some of them."""
OUTPUT = "image_embeds"
FUSION = "question_encoder"
_QUESTION_INPUTS = {
    "question_states",
    "attention_mask",
    "qformer_input_ids",
    "qformer_attention_mask",
}
_IMAGE_CACHE_ITEMS = 1024
_QUESTION_CACHE_ITEMS = 4096


class Seen(msgspec.Struct, frozen=True):
    """What is kept of a picture: the values that later graphs take, by name, and how it was prepared.

    Each value belongs to this picture alone: (1, ...), or (tiles, ...) where it was cut into tiles.
    """

    values: dict[str, Value]
    prepared: Prepared


class ImageSide:
    """Runs the graphs of `STAGES` that a model has.

    Graphs that take nothing of the question run once a picture, and what they gave is kept for further questions; the
    others run for every question, in one batch. A picture's row is broadcast over the questions about it.
    """

    def __init__(
        self, graphs: Graphs, manifest: Manifest, options: PipelineOptions, *, outputs: Sequence[str] = (OUTPUT,)
    ) -> None:
        """`outputs` are what later graphs take. Raises `BundleError` where the graphs do not lead from a picture to them."""
        if manifest.image is None:
            raise BundleError("The manifest lacks 'image', which this pipeline needs. Export the bundle again.")
        self._graphs, self._statistics, self._outputs = graphs, graphs.statistics, frozenset(outputs)
        self._image: ImageSpec = manifest.image
        self._image_token = -1 if manifest.text is None else manifest.text.image_token_id or -1
        self._pad = manifest.texts["fusion"].pad_token_id if "fusion" in manifest.texts else _pad_of(manifest)
        self._pad_qformer = manifest.texts["qformer"].pad_token_id if "qformer" in manifest.texts else 0
        stages = [name for name in STAGES if name in graphs]
        asking = [number for number, name in enumerate(stages) if _QUESTION_INPUTS & set(graphs.inputs(name))]
        first = asking[0] if asking else len(stages)
        self._once, self._each = stages[:first], stages[first:]
        if not self._once:
            graphs.require(("vision",))
        if "vision_fusion" in graphs:
            graphs.require((FUSION,))
        self._pictures: LruCache[bytes, Seen] = LruCache(
            max_items=_IMAGE_CACHE_ITEMS, max_bytes=options.trunk_cache_mb * MIB
        )
        self._questions: LruCache[tuple[int, ...], Value] = LruCache(
            max_items=_QUESTION_CACHE_ITEMS, max_bytes=options.question_cache_mb * MIB
        )

    @property
    def asks(self) -> bool:
        """Whether a picture's embeddings depend on the question."""
        return bool(self._each)

    def clear(self) -> None:
        """Forget every picture and question."""
        self._pictures.clear()
        self._questions.clear()

    def embeds(self, pairs: Sequence[Pair]) -> Value:
        """`image_embeds` (pairs, tokens, width); every picture must have as many tokens."""
        seen = self.see([pair.picture for pair in pairs])
        if self._each:
            return self._ask(pairs, seen)[OUTPUT]
        return join([seen[pair.picture.key].values[OUTPUT] for pair in pairs])

    def values(self, pairs: Sequence[Pair]) -> dict[str, Value]:
        """All outputs, (pairs, ...), where none depends on the question."""
        seen = self.see([pair.picture for pair in pairs])
        return {name: join([seen[pair.picture.key].values[name] for pair in pairs]) for name in sorted(self._outputs)}

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Value, Prepared]]:
        """For every pair its `image_embeds` (1, tokens, width) and how its picture was prepared."""
        seen = self.see([pair.picture for pair in pairs])
        prepared = [seen[pair.picture.key].prepared for pair in pairs]
        if self._each:
            return list(zip(split(self._ask(pairs, seen)[OUTPUT]), prepared, strict=True))
        return [(seen[pair.picture.key].values[OUTPUT], each) for pair, each in zip(pairs, prepared, strict=True)]

    def see(self, pictures: Sequence[Picture]) -> dict[bytes, Seen]:
        """What is kept of each picture, by its key, computed where it is not known."""
        held: dict[bytes, Seen] = {picture.key: picture.memo["seen"] for picture in pictures if picture.memo}
        wanted = {picture.key: picture for picture in pictures if picture.key not in held}
        rows, missed = recall(self._pictures, wanted, self._look, _seen_bytes)
        rows.update(held)
        for picture in pictures:
            picture.memo["seen"] = rows[picture.key]
        self._statistics.image_misses += missed
        self._statistics.image_hits += len(rows) - missed
        return rows

    def _look(self, pictures: Sequence[Picture]) -> list[Seen]:
        """Run what does not depend on the question: in one batch where all pictures have one shape, else one by one."""
        if any(picture.parts for picture in pictures):
            return [self._together(each) if each.parts else self._look([each])[0] for each in pictures]
        with self._statistics.timed("preprocess"):
            prepared = [prepare(picture.rgb, self._image) for picture in pictures]
        told = [msgspec.structs.replace(each, inputs={}) for each in prepared]  # the pixels are not kept
        if self._image.processor != "fixed":
            found = [self._run(self._once, each.inputs) for each in prepared]
            return [Seen(values, each) for values, each in zip(found, told, strict=True)]
        names = prepared[0].inputs
        batch = {name: np.concatenate([each.inputs[name] for each in prepared]) for name in names}
        rows = {name: split(value) for name, value in self._run(self._once, batch).items()}
        return [Seen({name: row[number] for name, row in rows.items()}, each) for number, each in enumerate(told)]

    def _together(self, picture: Picture) -> Seen:
        """Several pictures as one that has the embeddings of all."""
        rows = self.see(picture.parts)
        seen = [rows[part.key] for part in picture.parts]
        embeds = [host(each.values[OUTPUT]) for each in seen]
        prepared = join_prepared(
            [(each.prepared, value.shape[1]) for each, value in zip(seen, embeds, strict=True)],
            separator=self._image.separator or (),
            image_token=self._image_token,
        )
        return Seen({OUTPUT: np.concatenate(embeds, axis=1)}, prepared)

    def _ask(self, pairs: Sequence[Pair], seen: Mapping[bytes, Seen]) -> dict[str, Value]:
        """Run what depends on the question, for all pairs at once."""
        keys = [pair.picture.key for pair in pairs]
        keys = keys[:1] if len(set(keys)) == 1 else keys
        names = seen[keys[0]].values
        values: dict[str, Value] = {name: join([seen[key].values[name] for key in keys]) for name in names}
        questions = [pair.question for pair in pairs]
        if FUSION in self._graphs:
            ids = [question.others.get("fusion", question.ids) for question in questions]
            values["attention_mask"] = pad_ids(ids, self._pad)[1]
            values["question_states"] = self._question_states(ids)
        if any("qformer_input_ids" in self._graphs.inputs(name) for name in self._each):
            ids = [question.others["qformer"] for question in questions]
            values["qformer_input_ids"], values["qformer_attention_mask"] = pad_ids(ids, self._pad_qformer)
        return self._run(self._each, values)

    def _run(self, stages: Sequence[str], values: Mapping[str, Value]) -> dict[str, Value]:
        """Run the stages, each with what it takes of what there is; gives what a later stage takes."""
        known = dict(values)
        for name in stages:
            if "trunk_states" in known:  # without fusion they are the image's
                known.setdefault("image_states", known["trunk_states"])
            inputs = self._graphs.inputs(name)
            known.update(
                self._graphs.run(name, {each: _cast(known[each], spec.dtype) for each, spec in inputs.items()})
            )
        wanted = self._outputs.union(*(self._graphs.inputs(name) for name in self._each))
        return {name: value for name, value in known.items() if name in wanted}

    def _question_states(self, questions: Sequence[tuple[int, ...]]) -> Value:
        """States of the questions, (batch, words, text); the padding is zeros, which the mask hides."""
        items = {ids: ids for ids in questions}
        rows, missed = recall(self._questions, items, self._run_questions, size_bytes)
        self._statistics.question_misses += missed
        self._statistics.question_hits += len(rows) - missed
        if len(questions) == 1:
            return rows[questions[0]]
        hosts = [host(rows[ids]) for ids in questions]
        joined = np.zeros((len(hosts), max(map(len, questions)), hosts[0].shape[2]), dtype=hosts[0].dtype)
        for number, row in enumerate(hosts):
            joined[number, : row.shape[1]] = row[0]
        return joined

    def _run_questions(self, questions: Sequence[tuple[int, ...]]) -> list[Value]:
        """The states of each question without padding, (1, its words, text)."""
        ids, mask = pad_ids(questions, self._pad)
        states: Tensor = self._graphs.run(FUSION, {"input_ids": ids, "attention_mask": mask})["question_states"]
        if len(questions) == 1:
            return [states]
        rows = states.numpy()
        return [np.array(rows[row : row + 1, : len(each)]) for row, each in enumerate(questions)]


def question_inputs(questions: Sequence[Question], pad_token_id: int) -> dict[str, Value]:
    """`input_ids` and `attention_mask`, int64 (batch, words), of what the language model reads."""
    ids, mask = pad_ids([question.ids for question in questions], pad_token_id)
    return {"input_ids": ids, "attention_mask": mask}


def _pad_of(manifest: Manifest) -> int:
    return 0 if manifest.text is None else manifest.text.pad_token_id


def _cast(value: Value, dtype: str) -> Value:
    """Host arrays in the graph's floating type; a graph may be of FP16."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and dtype != "float32":
        return value.astype(np.dtype(dtype))
    return value


def _seen_bytes(seen: Seen) -> int:
    return sum(size_bytes(value) for value in seen.values.values())
