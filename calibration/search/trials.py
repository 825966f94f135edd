"""Measure candidates: the same held-out questions, asked of the float model once and of every candidate."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from edgevqa.calibration.search.candidates import Candidates, State
from edgevqa.calibration.search.records import Records, Trial
from edgevqa.evaluation.answers import answer_all
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.metrics import vqa_accuracy
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import Answer
from edgevqa.runtime.sensitivity import Effect

Mode = Literal["only", "mixed"]
Asked = Callable[[int, int], None]
NO_LIKELIHOOD = 100.0  # nats; what an answer costs that has no finite likelihood any more
NORMAL_95 = 1.959964


class _Reference(msgspec.Struct, frozen=True):
    """The float model's answer to one sample."""

    text: str
    tokens: tuple[int, ...]
    log_probability: float
    score: float | None


class Trials:
    """Measures candidates on the first n of `samples`, and remembers every one in `records`.

    `mode` "only": the float model with these layers quantised; "mixed": the graphs as they would be written. The float
    model is asked when the first candidate is measured that `records` does not know.
    """

    def __init__(self, candidates: Candidates, samples: Sequence[Sample], records: Records) -> None:
        self.candidates = candidates
        self.samples = samples
        self.records = records
        self.metric = "accuracy" if all(sample.answers for sample in samples) else "agreement"
        self._references: list[_Reference] = []
        self.float_graph_ms: dict[str, float] = {}

    def known(self, mode: Mode, quantised: frozenset[str], count: int) -> bool:
        """Whether `measure` would answer from memory."""
        return self.records.trial(mode, quantised, count) is not None

    def measure(self, mode: Mode, quantised: frozenset[str], count: int, asked: Asked | None = None) -> Effect:
        """The effect of quantising these layers on the first `count` samples; kept at once."""
        known = self.records.trial(mode, quantised, count)
        if known is not None:
            return known.effect
        references = self.reference(count)
        start = time.monotonic()
        states = self.candidates.only(quantised) if mode == "only" else self.candidates.mixed(quantised)
        effect = self._effect(states, references, asked)
        seconds = time.monotonic() - start
        self.records.add(Trial(mode=mode, quantised=sorted(quantised), effect=effect, seconds=seconds))
        return effect

    def warm_up(self) -> None:
        """Load the float graphs and open the first pictures, so that what is timed next is answering alone."""
        with self.candidates.pipeline(self.candidates.float_states()) as pipeline:
            list(answer_all(pipeline, self.samples[:1]))

    def reference(self, count: int) -> list[_Reference]:
        """The float model's answers to the first `count` samples; asked as far as they are not known."""
        missing = self.samples[len(self._references) : count]
        if missing:
            with self.candidates.pipeline(self.candidates.float_states()) as pipeline:
                answers = list(answer_all(pipeline, missing))
                if not self._references:
                    stages = pipeline.statistics.stage_ms
                    self.float_graph_ms = {
                        graph: stages.get(graph, 0.0) / len(missing) for graph in self.candidates.layers
                    }
            self._references += [
                _Reference(answer.text, answer.tokens, _total(answer), self._score(sample, answer.text))
                for sample, answer in zip(missing, answers, strict=True)
            ]
        return self._references[:count]

    def _effect(self, states: list[State], references: list[_Reference], asked: Asked | None) -> Effect:
        samples = self.samples[: len(references)]
        try:
            with self.candidates.pipeline(states) as pipeline:
                answers = list(answer_all(pipeline, samples, advance=asked))
                costs = _likelihood_costs(pipeline, samples, references, answers)
        except CheckFailed:  # logits that are no numbers: nothing is left of any answer
            return _ruin(references)
        same = [answer.text == reference.text for answer, reference in zip(answers, references, strict=True)]
        scores = [self._score(sample, answer.text) for sample, answer in zip(samples, answers, strict=True)]
        return make_effect(same, [reference.score for reference in references], scores, costs)

    def _score(self, sample: Sample, text: str) -> float | None:
        return vqa_accuracy(text, sample.answers) if self.metric == "accuracy" else None


def make_effect(
    same: Sequence[bool], before: Sequence[float | None], after: Sequence[float | None], costs: Sequence[float]
) -> Effect:
    """The effect from each sample's agreement, scores of both models (0 to 1, or None), and likelihood cost."""
    scored = [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    lost = [old - new for old, new in scored] or [float(not equal) for equal in same]
    low, high = drop_interval(lost)
    return Effect(
        samples=len(same),
        agreement=100 * sum(same) / len(same),
        accuracy=100 * math.fsum(new for _, new in scored) / len(scored) if scored else None,
        drop=100 * math.fsum(lost) / len(lost),
        drop_ci95=(100 * low, 100 * high),
        log_likelihood_cost=math.fsum(costs) / len(costs),
        log_likelihood_shift=math.fsum(map(abs, costs)) / len(costs),
    )


def drop_interval(lost: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean of paired differences in [-1, 1], also where all are 0.

    The adjusted Wald interval for paired proportions: one imagined loss and one gain are added. Source: Bonett and
    Price, J. Educ. Behav. Stat. 37 (2012).
    """
    padded = np.array([*lost, 1.0, -1.0])
    margin = NORMAL_95 * float(padded.std()) / math.sqrt(len(padded))
    return max(float(padded.mean()) - margin, -1.0), min(float(padded.mean()) + margin, 1.0)


def _likelihood_costs(
    pipeline: Pipeline, samples: Sequence[Sample], references: Sequence[_Reference], answers: Sequence[Answer]
) -> list[float]:
    """By how many nats each float answer has become less likely.

    Where the answer is the same, its own log-probability tells; where not, the float answer is scored as a choice.
    """
    costs = [reference.log_probability - _total(answer) for reference, answer in zip(references, answers, strict=True)]
    changed: dict[str, list[int]] = defaultdict(list)
    for place, (reference, answer) in enumerate(zip(references, answers, strict=True)):
        if reference.tokens != answer.tokens:
            changed[reference.text].append(place)
    for text, places in changed.items():
        if not text.strip():
            continue  # an empty answer is no choice; its cost stays the difference of the two answers
        pairs = [(samples[place].image, samples[place].question) for place in places]
        for place, scored in zip(places, pipeline.answer_pairs(pairs, choices=[text]), strict=True):
            if scored.tokens == references[place].tokens:
                costs[place] = references[place].log_probability - scored.log_probability * len(scored.tokens)
    return [min(cost, NO_LIKELIHOOD) if math.isfinite(cost) else NO_LIKELIHOOD for cost in costs]


def _ruin(references: Sequence[_Reference]) -> Effect:
    count = len(references)
    scores = [reference.score for reference in references]
    nothing = [None if score is None else 0.0 for score in scores]
    return make_effect([False] * count, scores, nothing, [NO_LIKELIHOOD] * count)


def _total(answer: Answer) -> float:
    return answer.log_probability * len(answer.tokens)
