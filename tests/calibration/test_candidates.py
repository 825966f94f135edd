"""Candidates: the right graphs run, nothing is computed twice, and what is reused is exact."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.search.candidates import DECODER, Candidates, Memo
from edgevqa.calibration.search.held_out import held_out
from edgevqa.calibration.search.records import Records
from edgevqa.calibration.search.trials import NO_LIKELIHOOD, Trials, drop_interval, make_effect
from edgevqa.calibration.weights import SharedWeights
from edgevqa.evaluation.answers import answer_all
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.pipelines.base import Answer, PipelineOptions

SAMPLES = held_out("scenes:11:64", None, seed=0, limit=24)
FUSION = "vision_fusion"


class Rounder:
    """Rounds the weights of a layer to so many steps: a real, if crude, way to quantise that needs no calibration."""

    def __init__(self, bundle: Bundle, steps: float = 7.0) -> None:
        self.bundle = bundle
        self.steps = steps
        self.written: list[tuple[str, frozenset[str]]] = []
        self.layers = {graph: frozenset(self._linears(graph)) for graph in bundle.variant("fp32").graphs}

    def write_graph(self, weights: SharedWeights, path: Path, graph: str, high: Collection[str] = ()) -> None:
        model = ir.load(self.bundle.graph_path("fp32", graph))
        quantised = self.layers[graph] - set(high)
        for name, linear in find_linears(model.graph).items():
            tensor = linear.weight.const_value
            if f"{graph}/{name}" in quantised and tensor is not None:
                linear.weight.const_value = ir.tensor(self._rounded(tensor.numpy()), name=linear.weight.name)
        weights.write_graph(model, path)
        self.written.append((graph, frozenset(quantised)))

    def _rounded(self, weight: np.ndarray) -> np.ndarray:
        scale = np.float32(np.abs(weight).max() / self.steps)
        rounded: np.ndarray = np.rint(weight / scale) * scale
        return rounded.astype(np.float32)

    def _linears(self, graph: str) -> list[str]:
        found = find_linears(ir.load(self.bundle.graph_path("fp32", graph)).graph)
        return [f"{graph}/{name}" for name, linear in found.items() if not linear.head]


@pytest.fixture
def rounder(reference_bundle: Path, tmp_path: Path) -> Rounder:
    shutil.copytree(reference_bundle, tmp_path / "copy.bundle")
    return Rounder(Bundle.open(tmp_path / "copy.bundle"))


@pytest.fixture
def candidates(rounder: Rounder) -> Iterator[Candidates]:
    options = PipelineOptions(backend="onnxruntime", threads=1, check=False)
    with Candidates(rounder.bundle, rounder.layers, rounder, options) as made:
        yield made


@pytest.fixture
def trials(candidates: Candidates, tmp_path: Path) -> Trials:
    return Trials(candidates, SAMPLES, Records(tmp_path / "records", {}))


def same(first: list[Answer], second: list[Answer]) -> bool:
    """The same to the last bit."""
    return [(one.tokens, one.log_probability) for one in first] == [(two.tokens, two.log_probability) for two in second]


def test_a_candidate_changes_one_graph_and_reuses_the_rest(candidates: Candidates, rounder: Rounder) -> None:
    layer = min(candidates.layers[FUSION])
    changed: list[Answer] = []
    for _ in range(2):
        with candidates.pipeline(candidates.only(frozenset({layer}))) as pipeline:
            changed = list(answer_all(pipeline, SAMPLES))
    assert rounder.written == [(FUSION, frozenset({layer}))]
    with candidates.pipeline(candidates.float_states()) as pipeline:
        assert not same(changed, list(answer_all(pipeline, SAMPLES)))


def test_reused_results_are_exact(candidates: Candidates, rounder: Rounder) -> None:
    """A graph late in the pipeline: what comes before it is taken from the memo, and nothing changes by that."""
    layer = frozenset({min(candidates.layers["language_encoder"])})
    with candidates.pipeline(candidates.float_states()) as pipeline:
        list(answer_all(pipeline, SAMPLES))
    hits = candidates.memo.hits
    with candidates.pipeline(candidates.only(layer)) as pipeline:
        remembered = list(answer_all(pipeline, SAMPLES))
    assert candidates.memo.hits > hits
    fresh = Candidates(rounder.bundle, rounder.layers, rounder, PipelineOptions(backend="onnxruntime", threads=1))
    fresh.memo = Memo(max_bytes=0)
    with fresh, fresh.pipeline(fresh.only(layer)) as pipeline:
        assert same(remembered, list(answer_all(pipeline, SAMPLES)))
    assert fresh.memo.hits == 0


def test_nothing_quantised_is_the_float_model(candidates: Candidates) -> None:
    with candidates.pipeline(candidates.float_states()) as pipeline:
        expected = list(answer_all(pipeline, SAMPLES))
    with candidates.pipeline(candidates.mixed(frozenset())) as pipeline:
        assert same(expected, list(answer_all(pipeline, SAMPLES)))


def test_sessions_and_files_of_past_candidates_go(candidates: Candidates) -> None:
    layers = sorted(candidates.layers[DECODER])[:3]
    for name in layers:
        with candidates.pipeline(candidates.only(frozenset({name}))):
            pass
        assert len(list(candidates._folder.glob("*.onnx"))) == 1
    folder = candidates._folder
    candidates.__exit__(None, None, None)
    assert not folder.exists()


def test_a_full_memo_keeps_what_came_first() -> None:
    memo = Memo(max_bytes=100)
    state = ("projector", None)
    memo.put(state, b"first", {"x": _tensor(10)})
    memo.put(state, b"second", {"x": _tensor(10)})
    assert memo.get(state, b"first") is not None
    assert memo.get(state, b"second") is None
    memo.forget(lambda kept: False)
    assert (memo.size_bytes, memo.get(state, b"first")) == (0, None)


class _tensor:
    def __init__(self, size: int) -> None:
        self.shape = (size,)

    def numpy(self) -> np.ndarray:
        return np.zeros(self.shape)


def test_a_trial_measures_what_changed(trials: Trials) -> None:
    everything = trials.candidates.all_layers
    harmless = trials.measure("mixed", frozenset(), len(SAMPLES))
    assert (harmless.agreement, harmless.drop, harmless.log_likelihood_cost) == (100.0, 0.0, 0.0)
    harmful = trials.measure("mixed", everything, len(SAMPLES))
    assert harmful.log_likelihood_cost > 0
    assert harmful.accuracy is not None
    assert harmful.samples == len(SAMPLES)


def test_the_cost_of_a_changed_answer_is_that_of_the_float_answer(trials: Trials, rounder: Rounder) -> None:
    """Against the pipeline's own scoring of the float answer as the only choice."""
    rounder.steps = 2.0
    count, everything = 16, trials.candidates.all_layers
    effect = trials.measure("mixed", everything, count)
    references = trials.reference(count)
    assert effect.agreement < 100, "the case needs answers that changed"
    with trials.candidates.pipeline(trials.candidates.mixed(everything)) as pipeline:
        scored = [
            pipeline.answer(sample.image, sample.question, choices=[reference.text])
            for sample, reference in zip(SAMPLES[:count], references, strict=True)
        ]
    expected = [
        reference.log_probability - answer.log_probability * len(answer.tokens)
        for answer, reference in zip(scored, references, strict=True)
    ]
    assert effect.log_likelihood_cost == pytest.approx(np.mean(expected), rel=1e-3)


def test_a_known_trial_asks_nobody(trials: Trials, rounder: Rounder) -> None:
    layer = frozenset({min(trials.candidates.layers[FUSION])})
    first = trials.measure("only", layer, 16)
    rounder.written.clear()
    again = Trials(trials.candidates, SAMPLES, Records(trials.records.path.parent, {}))
    assert again.known("only", layer, 16)
    assert again.measure("only", layer, 16) == first
    assert rounder.written == []
    assert again._references == []


def test_numbers_that_overflow_are_a_ruin_not_a_crash(trials: Trials, rounder: Rounder) -> None:
    rounder.steps = float("nan")
    effect = trials.measure("mixed", trials.candidates.all_layers, 16)
    assert (effect.agreement, effect.accuracy, effect.log_likelihood_cost) == (0.0, 0.0, NO_LIKELIHOOD)


def test_an_effect_is_in_points_of_accuracy_where_there_are_answers() -> None:
    effect = make_effect([True, True, False, False], [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 2.0, -1.0])
    assert (effect.agreement, effect.accuracy, effect.drop) == (50.0, 50.0, 0.0)
    assert (effect.log_likelihood_cost, effect.log_likelihood_shift) == (0.25, 0.75)
    without = make_effect([True, True, False, False], [None] * 4, [None] * 4, [0.0] * 4)
    assert (without.accuracy, without.drop) == (None, 50.0)


def test_the_interval_of_a_drop() -> None:
    """Bonett and Price's adjusted interval, computed from its formula: p12 = (b + 1) / (n + 2), p21 likewise."""
    lost = [1.0] * 6 + [-1.0] * 2 + [0.0] * 92
    p12, p21, n = 7 / 102, 3 / 102, 102
    margin = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    assert drop_interval(lost) == pytest.approx((p12 - p21 - margin, p12 - p21 + margin))
    low, high = drop_interval([0.0] * 100)
    assert low == -high
    assert 0.01 < high < 0.03, "no change among 100 does not prove that there is none"
