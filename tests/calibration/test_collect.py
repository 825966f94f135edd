from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation import collect as collecting
from edgevqa.calibration.observation.collect import Collected, collect
from edgevqa.calibration.observation.resume import SavedState
from edgevqa.calibration.observation.samples import CalibrationSet, pick_samples
from edgevqa.calibration.observation.statistics import GraphStatistics
from edgevqa.calibration.observation.taps import link_weights
from edgevqa.calibration.quantization.residuals import find_residuals
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.counters import Statistics
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor

Seen = dict[str, list[NDArray[np.float32]]]
Exported = Callable[[str], Path]


@pytest.fixture
def bundle(golden_bundle: Exported) -> Bundle:
    return Bundle.open(golden_bundle("late"))


def chosen_of(count: int) -> CalibrationSet:
    return pick_samples(open_dataset(f"scenes:3:{count}"), count, 0)


def run(bundle: Bundle, chosen: CalibrationSet, **options: object) -> Collected:
    return collect(bundle, chosen, SavedState(bundle, chosen), threads=1, **options)  # type: ignore[arg-type]


class RecordingSession:
    """Keeps every float input and output of a graph without taps."""

    def __init__(self, session: Session, seen: Seen, runs: list[int]) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self._session, self._seen, self._runs = session, seen, runs

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        outputs = self._session.run(inputs)
        self._runs.append(1)
        for name, value in {**inputs, **outputs}.items():
            array = value if isinstance(value, np.ndarray) else value.numpy()
            self._seen.setdefault(name, []).append(np.array(array))
        return outputs

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> RecordingSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recorded(bundle: Bundle, chosen: CalibrationSet) -> tuple[dict[str, Seen], dict[str, int], list[str]]:
    """What flows in and out of the plain graphs when each question is asked alone; runs; answers."""
    seen: dict[str, Seen] = {}
    runs: dict[str, list[int]] = {}
    sessions: dict[str, Session] = {}
    for name in bundle.variant("fp32").graphs:
        seen[name], runs[name] = {}, []
        session = open_session(bundle, "fp32", name, backend="onnxruntime", options=SessionOptions(threads=1))
        sessions[name] = RecordingSession(session, seen[name], runs[name])
    options = PipelineOptions(max_batch=1)
    graphs = Graphs(sessions, Statistics())
    answers: list[str] = []
    with Pipeline(bundle, graphs, options, variant="fp32", backend="onnxruntime") as pipeline:
        for group in chosen.groups:
            answers += [pipeline.answer(group[0].image, sample.question).text for sample in group]
            pipeline.clear_caches()
    return seen, {name: len(found) for name, found in runs.items()}, answers


@pytest.mark.parametrize("family", ["late", "plain"])
def test_what_is_observed_is_what_flows_through_the_plain_graphs(golden_bundle: Exported, family: str) -> None:
    """With the image's trunk run once a picture, everything else once a question, the decoder once a token."""
    bundle, chosen = Bundle.open(golden_bundle(family)), chosen_of(12)
    seen, runs, answers = recorded(bundle, chosen)
    collected = run(bundle, chosen)
    assert len(answers) == 12
    assert collected.runs == runs
    assert runs["vision_trunk"] == len(chosen.groups) == 3
    assert runs["language_encoder"] == 12
    for graph, found in collected.graphs.items():
        floats = {name: arrays for name, arrays in seen[graph].items() if arrays[0].dtype == np.float32}
        for name, arrays in floats.items():
            expected = max(float(np.abs(array).max()) for array in arrays)
            assert found.absmax[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), (graph, name)
    rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in seen["projector"]["image_states"]])
    tensor = collected.graphs["projector"].inputs["image_states"]
    assert tensor.row_count == len(rows)
    assert (tensor.low, tensor.high) == pytest.approx((float(rows.min()), float(rows.max())), rel=1e-5)
    assert np.allclose(tensor.channel_mean, rows.mean(axis=0), atol=1e-5)


def test_every_linear_layer_and_float_tensor_is_observed(bundle: Bundle) -> None:
    collected = run(bundle, chosen_of(8))
    for graph, found in collected.graphs.items():
        model = ir.load(bundle.graph_path("fp32", graph)).graph
        readers = {use.input.name for linear in find_linears(model).values() for use in linear.uses}
        assert set(found.inputs) == readers | {residual.tensor for residual in find_residuals(model)}
        made = [*model.inputs, *(value for node in model for value in node.outputs)]
        floats = {value.name for value in made if value.dtype == ir.DataType.FLOAT}
        assert set(found.absmax) >= floats
        assert all(np.isfinite(value) for value in found.absmax.values())


def test_no_padding_is_seen(bundle: Bundle) -> None:
    """Questions of different lengths: as many rows as words, one question at a time."""
    chosen = chosen_of(12)
    seen, _, _ = recorded(bundle, chosen)
    masks = seen["question_encoder"]["attention_mask"]
    lengths = {mask.shape[1] for mask in masks}
    assert len(lengths) > 1
    assert all(mask.all() for mask in masks)
    collected = run(bundle, chosen)
    inputs = collected.graphs["question_encoder"].inputs.values()
    assert {tensor.row_count for tensor in inputs} == {sum(mask.size for mask in masks)}


def test_answers_are_those_of_the_plain_pipeline(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chosen_of(8)
    said: list[str] = []
    plain = Pipeline.answer

    def listening(self: Pipeline, *args: object, **options: object) -> object:
        answer = plain(self, *args, **options)  # type: ignore[call-overload]
        said.append(answer.text)
        return answer

    _, _, expected = recorded(bundle, chosen)
    monkeypatch.setattr(Pipeline, "answer", listening)
    run(bundle, chosen)
    assert said == expected


def equal(one: dict[str, GraphStatistics], two: dict[str, GraphStatistics]) -> bool:
    """Bit for bit."""
    if one.keys() != two.keys() or any(one[g].absmax != two[g].absmax for g in one):
        return False
    pairs = [(one[g].inputs[n], two[g].inputs[n]) for g in one for n in one[g].inputs]
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in pairs
        for name in ("low", "high", "limit", "counts", "channel_absmax", "channel_mean", "rows", "row_count")
    )


def test_an_interrupted_run_goes_on_to_the_same_result(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chosen_of(20)
    whole = run(bundle, chosen)

    def interrupt(what: str, done: int, total: int) -> None:
        assert total == 20
        if what == "observe" and done == 10:  # in the middle of the third picture
            raise KeyboardInterrupt

    saved = SavedState(bundle, chosen)
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "SAVE_EVERY_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(bundle, chosen, report=interrupt)
    assert saved.load()[0] == 2
    assert [path.name for path in bundle.root.parent.iterdir() if "calibrating" in path.name] == []
    resumed = run(bundle, chosen)
    assert resumed.resumed_samples == 8
    assert resumed.runs == whole.runs
    assert equal(resumed.graphs, whole.graphs)
    saved.discard()
    assert list(saved.path.parent.iterdir()) == []


def test_what_was_saved_belongs_to_one_set_seed_and_model(bundle: Bundle, golden_bundle: Exported) -> None:
    chosen = chosen_of(8)
    path = SavedState(bundle, chosen).path
    other_seed = pick_samples(open_dataset("scenes:3:8"), 8, 1)
    assert SavedState(bundle, chosen_of(12)).path != path
    assert SavedState(bundle, other_seed).path != path
    assert SavedState(Bundle.open(golden_bundle("plain")), chosen).path != path


def test_a_damaged_or_old_state_is_forgotten(bundle: Bundle) -> None:
    chosen = chosen_of(8)
    saved = SavedState(bundle, chosen)
    saved.save(1, {"projector": {"runs": np.array(3)}})
    saved.path.write_bytes(saved.path.read_bytes()[:50])
    assert saved.load() == (0, {})
    old = saved.path.with_name("old.npz")
    old.write_bytes(b"")
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    saved.save(1, {})
    assert not old.exists()
    assert saved.load() == (1, {})
    saved.discard()


def test_memory_does_not_grow_with_samples(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, int] = {}

    class Weighing(SavedState):
        def save(self, done: int, states: dict[str, dict[str, NDArray[np.float64]]]) -> None:
            sizes[done] = sum(array.nbytes for state in states.values() for array in state.values())

    monkeypatch.setattr(collecting, "SAVE_EVERY_S", 0.0)
    chosen = pick_samples(open_dataset("scenes:3:800"), 200, 0)
    collect(bundle, chosen, Weighing(bundle, chosen), threads=1)
    assert len(chosen.groups) > 150
    assert sizes[20] == sizes[len(chosen.groups)] > 0


def with_weight(bundle: Bundle, graph: str, weight: str, value: float, target: Path) -> Bundle:
    """A copy of a bundle with one number of one float32 weight changed."""
    shutil.copytree(bundle.root, target)
    copied = Bundle.open(target)
    tensor = ir.load(copied.graph_path("fp32", graph)).graph.initializers[weight].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    variant = copied.variant("fp32")
    assert variant.weights is not None
    data = bytearray((target / variant.weights.path).read_bytes())
    data[tensor.offset + 12 : tensor.offset + 16] = np.float32(value).tobytes()
    with BundleWriter.extend(copied) as writer:
        changed = msgspec.structs.replace(variant, weights=writer.add_bytes(bytes(data), variant.weights.path))
        return writer.finish(msgspec.structs.replace(copied.manifest, variants={"fp32": changed}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_tensors_name(bundle: Bundle, tmp_path: Path, value: float) -> None:
    """One number of a Linear's weight: its output is the first tensor that is wrong."""
    model = ir.load(bundle.graph_path("fp32", "projector")).graph
    linear = next(found for found in find_linears(model).values() if found.bias is not None)
    broken = with_weight(bundle, "projector", str(linear.weight.name), value, tmp_path / "broken.bundle")
    with pytest.raises(InputError) as caught:
        run(broken, chosen_of(8))
    message = str(caught.value)
    assert f"'{linear.uses[0].output.name}'" in message
    assert "'projector'" in message
    assert "Question " in message
    assert [path.name for path in tmp_path.iterdir()] == ["broken.bundle"]


def test_weights_are_linked_not_copied(bundle: Bundle) -> None:
    place = bundle.root.parent / "links"
    place.mkdir()
    link_weights(bundle, "fp32", place)
    weights = bundle.weights_path("fp32")
    assert weights is not None
    assert (place / weights.name).samefile(weights)
    shutil.rmtree(place)
