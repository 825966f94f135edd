"""Classifiers: a picture, or a picture and a question, to one of the model's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgevqa.runtime.codecs import distinct_labels
from edgevqa.runtime.decoding import Generated, log_softmax
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import Outcome, Pair, PipelineOptions, Request
from edgevqa.runtime.preprocessing import collate, prepare
from edgevqa.runtime.text import pad_ids

CLASSIFIER = "classifier"


class ClassificationFlow:
    """The graph `classifier`: the processor's inputs, and the question where it takes `input_ids`, to `logits`."""

    def __init__(self, graphs: Graphs, manifest: Manifest, options: PipelineOptions) -> None:
        """Raises `BundleError` when the graph or a part of the manifest is missing."""
        graphs.require((CLASSIFIER,))
        if manifest.image is None or not manifest.labels:
            raise BundleError("The manifest lacks 'image' or 'labels', which this pipeline needs. Export it again.")
        self._graphs = graphs
        self._image, self._labels = manifest.image, distinct_labels(manifest.labels)
        self._pad = 0 if manifest.text is None else manifest.text.pad_token_id
        self._reads = "input_ids" in graphs.inputs(CLASSIFIER)

    def answer(self, pairs: Sequence[Pair], request: Request) -> list[Outcome]:
        """The likeliest label of every pair, and the scores of the likeliest `top_k`, or of the choices."""
        with self._graphs.statistics.timed("preprocess"):
            inputs = collate([prepare(pair.picture.rgb, self._image) for pair in pairs])
        if self._reads:
            ids = [pair.question.ids for pair in pairs]
            inputs["input_ids"], inputs["attention_mask"] = pad_ids(ids, self._pad)
        specs = self._graphs.inputs(CLASSIFIER)
        feeds = {name: value.astype(np.dtype(specs[name].dtype)) for name, value in inputs.items()}
        logits = self._graphs.run(CLASSIFIER, feeds)["logits"].numpy()
        return [self._outcome(row, request) for row in log_softmax(logits)]

    def stream(self, pair: Pair, request: Request) -> Iterator[Outcome]:
        """The whole answer at once."""
        yield from self.answer([pair], request)

    def clear_caches(self) -> None:
        """Nothing is kept."""

    def _outcome(self, log_probabilities: np.ndarray[tuple[int], np.dtype[np.float64]], request: Request) -> Outcome:
        def label(index: int) -> Generated:
            return Generated(tokens=(index,), total_log_probability=float(log_probabilities[index]))

        if request.choices:
            choices = tuple(label(choice.ids[0]) for choice in request.choices)
            return Outcome(generated=max(choices, key=lambda choice: choice.total_log_probability), choices=choices)
        best = np.argsort(-log_probabilities, kind="stable")[: request.top_k].tolist()
        scores = {self._labels[index]: float(np.exp(log_probabilities[index])) for index in best}
        return Outcome(generated=label(best[0]), scores=scores)
