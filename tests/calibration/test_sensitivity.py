"""A layer that was made terrible to quantise is found, kept high, and the budget holds: the real thing, end to end."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgevqa.calibration.describe import graph_spec
from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.run import CalibrateOptions, calibrate
from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.quantizer import Quantizer, WrittenGraph
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.search.ranking import SensitivityOptions, sensitivity
from edgevqa.calibration.search.search import MixedResult, SearchOptions, search_mixed
from edgevqa.calibration.weights import SharedWeights
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import CheckFailed, InputError
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.sensitivity import SensitivityReport, load_sensitivity, sensitivity_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GRAPH = "language_decoder"
LAYER = "language_model.decoder.block.0.layer.1.EncDecAttention.q"
PLANTED = f"{GRAPH}/{LAYER}"
DATA = "scenes:7:400"


def plant(bundle: Bundle) -> Bundle:
    """Let every second channel of a layer's input be 1000 times as large, by the norm before it and its own weight.

    In float nothing changes; one scale for the whole tensor then leaves the other channels nothing.
    """
    variant = bundle.variant("fp32")
    models = {name: ir.load(bundle.graph_path("fp32", name)) for name in variant.graphs}
    for model in models.values():
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    linear = find_linears(models[GRAPH].graph)[LAYER]
    norm = linear.uses[0].input.producer()
    assert norm is not None
    for given in norm.inputs:
        if given is not None and given.const_value is not None:
            scale(given, 1000.0)
    assert linear.out_axis == 1
    scale(linear.weight, 0.001)
    with BundleWriter.extend(bundle) as writer:
        with SharedWeights(writer.path("graphs/fp32/weights.data")) as weights:
            graphs = {}
            for name, model in models.items():
                path = f"graphs/fp32/{name}.onnx"
                weights.write_graph(model, writer.path(path))
                graphs[name] = graph_spec(model, writer.describe(path))
        variant = msgspec.structs.replace(variant, graphs=graphs, weights=writer.describe("graphs/fp32/weights.data"))
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants={"fp32": variant}))


def scale(value: ir.Value, factor: float) -> None:
    """Multiply every second row of a constant."""
    assert value.const_value is not None
    array = np.array(value.const_value.numpy())
    array[::2] *= np.float32(factor)
    value.const_value = ir.tensor(array, name=value.name)


@pytest.fixture(scope="module")
def planted(reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The reference model with one terrible layer, calibrated."""
    path = tmp_path_factory.mktemp("planted") / "planted.bundle"
    shutil.copytree(reference_bundle, path)
    plant(Bundle.open(path))
    return calibrate(path, CalibrateOptions(data="scenes:3:400", samples=48, threads=1)).bundle


@pytest.fixture(scope="module")
def quantizer(planted: Bundle) -> Quantizer:
    """Without smoothing, which would repair the layer, and without the refusal of layers beyond repair."""
    return Quantizer(planted, load_statistics(planted), Recipe(numerics="u8-fp32", smooth=False, max_error=1e9))


@pytest.fixture(scope="module")
def options() -> SensitivityOptions:
    return SensitivityOptions(data=DATA, samples=32, worst=3, threads=1, smooth=False, time_limit_s=None)


@pytest.fixture(scope="module")
def ranking(planted: Bundle, options: SensitivityOptions) -> SensitivityReport:
    return sensitivity(planted.root, options)


@pytest.fixture(scope="module")
def mixed(planted: Bundle, quantizer: Quantizer) -> MixedResult:
    return search_mixed(planted, quantizer, search_options())


def search_options(**settings: object) -> SearchOptions:
    return msgspec.structs.replace(SearchOptions(data=DATA, samples=32, worst=2, threads=1, max_drop=2.0), **settings)


def test_the_planted_layer_changes_nothing_in_float(planted: Bundle, reference_bundle: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    questions = ["what color is the circle?", "how many shapes are there?"]
    found = []
    for path in (reference_bundle, planted.root):
        with Pipeline.load(path, threads=1) as pipeline:
            found.append([answer.log_probability for answer in pipeline.answer(picture, questions)])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_the_planted_layer_is_ranked_first(ranking: SensitivityReport) -> None:
    first, second = ranking.layers[:2]
    assert first.layer == PLANTED
    assert first.local_error > 0.5
    assert first.harm > 20 * second.harm
    assert first.only is not None
    assert first.only.agreement < 90
    assert first.all_but is not None
    assert ranking.all_quantised is not None
    assert first.all_but.agreement > ranking.all_quantised.agreement + 10
    assert first.all_but.samples == first.only.samples == ranking.samples == 32


def test_every_layer_is_in_the_ranking_with_its_share_of_time(ranking: SensitivityReport, planted: Bundle) -> None:
    names = [row.layer for row in ranking.layers]
    linears = [
        f"{graph}/{name}"
        for graph in planted.variant("fp32").graphs
        for name, linear in find_linears(ir.load(planted.graph_path("fp32", graph)).graph).items()
        if not linear.head
    ]
    assert sorted(names) == sorted(linears)
    assert 0.9 < sum(row.share for row in ranking.layers) <= 1
    assert sum(not row.predicted for row in ranking.layers) == 3


def test_the_ranking_is_kept_beside_the_bundle_not_in_it(ranking: SensitivityReport, planted: Bundle) -> None:
    assert load_sensitivity(planted) == ranking
    assert planted.root not in sensitivity_path(planted).parents
    assert all(report.passed for report in planted.verify())
    assert {file.name for file in planted.root.iterdir()} == {
        *("calibration", "graphs", "manifest.json", "manifest.sha256", "tokenizer.json")
    }


def test_a_second_run_measures_nothing_again(
    ranking: SensitivityReport, planted: Bundle, options: SensitivityOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise AssertionError("a candidate was run again")

    monkeypatch.setattr("edgevqa.calibration.search.candidates.Candidates.pipeline", refuse)
    again = sensitivity(planted.root, options)
    assert msgspec.structs.replace(again, seconds=0) == msgspec.structs.replace(ranking, seconds=0)


def test_an_interrupted_run_goes_on(planted: Bundle, options: SensitivityOptions) -> None:
    """Ctrl-C during the third candidate: the two before it are known."""
    options = msgspec.structs.replace(options, seed=1)
    told: list[str] = []

    def interrupt(what: str, done: int, total: int) -> None:
        told.append(what)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(planted.root, options, report=interrupt)
    before = len(told)
    report = sensitivity(planted.root, options, report=lambda what, done, total: told.append(what))
    assert report.layers[0].layer == PLANTED
    assert before < len(told)


def test_the_search_keeps_the_planted_layer_high_and_holds_the_budget(mixed: MixedResult) -> None:
    assert mixed.all_quantised.drop > 10
    assert mixed.high == {PLANTED}
    assert mixed.effect.drop <= 2.0
    assert mixed.confirmed
    assert mixed.effect.samples == 64, "as many fresh samples as the search used"
    assert mixed.complete
    assert mixed.quantised_share > 0.9


def test_the_result_says_what_each_layer_costs_and_saves(mixed: MixedResult) -> None:
    kept = {row.layer: row for row in mixed.kept}
    row = kept[PLANTED]
    assert row.reason == "the budget"
    assert row.alone is not None
    assert row.lowered is not None
    assert row.lowered.drop > 10
    assert 0 < row.share < 0.1
    assert kept["language_decoder/language_model.lm_head"].reason == "vocabulary head"
    assert any("95 % interval" in warning for warning in mixed.warnings), "64 samples cannot prove 2 points"


def test_the_chosen_set_is_what_the_quantizer_writes(mixed: MixedResult, quantizer: Quantizer, planted: Bundle) -> None:
    with BundleWriter.extend(planted) as writer:
        _, written = quantizer.write(writer, "mixed-u8-fp32", "mixed", mixed.high)
    assert {name for graph in written for name in graph.high} == {row.layer for row in mixed.kept}


class Ruinous(Quantizer):
    """Whatever it quantises gives no numbers any more."""

    def write_graph(self, weights: SharedWeights, path: Path, graph: str, high: Collection[str] = ()) -> WrittenGraph:
        written = super().write_graph(weights, path, graph, high)
        model = ir.load(self._bundle.graph_path("fp32", graph))
        for name, linear in find_linears(model.graph).items():
            tensor = linear.weight.const_value
            if tensor is not None and not linear.head and f"{graph}/{name}" not in high:
                linear.weight.const_value = ir.tensor(np.full_like(tensor.numpy(), np.nan), name=linear.weight.name)
        weights.write_graph(model, path)
        return written


def test_that_no_set_holds_is_said(planted: Bundle) -> None:
    ruinous = Ruinous(planted, load_statistics(planted), Recipe(numerics="s8-fp32", smooth=False, max_error=1e9))
    with pytest.raises(
        CheckFailed, match=r"No mixed variant holds --max-drop 2: with all but one of \d+ layers high, "
    ) as no:
        search_mixed(planted, ruinous, search_options(samples=16, time_limit_s=1.0))
    assert "which the bundle already has as fp32; nothing was written. Give more time" in str(no.value)


def test_a_bundle_of_which_nothing_can_be_quantised(planted: Bundle) -> None:
    strict = Quantizer(planted, load_statistics(planted), Recipe(numerics="u8-fp32", max_error=0.0))
    with pytest.raises(CheckFailed, match="No layer of this bundle can be quantised"):
        search_mixed(planted, strict, search_options())


def test_numerics_of_a_gpu_are_measured_inside_fp32(planted: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the backend that runs S8 inside FP32 best."""
    monkeypatch.delenv("EDGEVQA_BACKEND", raising=False)
    options = SensitivityOptions(
        data=DATA, samples=16, worst=1, threads=1, smooth=False, time_limit_s=None, target="jetson-orin-jp6"
    )
    report = sensitivity(planted.root, options)
    assert report.numerics == "s8-fp16"
    assert report.backend == ("openvino" if find_spec("openvino") else "onnxruntime")
    assert report.layers[0].layer == PLANTED


def test_a_bundle_without_calibration_is_refused(reference_bundle: Path, options: SensitivityOptions) -> None:
    with pytest.raises(InputError, match="edgevqa calibrate"):
        sensitivity(reference_bundle, options)
