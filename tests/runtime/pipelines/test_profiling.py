"""The time of every layer: what belongs together, what is left out, and what a variant's report adds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.profiling import LayerReport, layer_times, linear_layers, profile, read_layer_report
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.sessions.base import NodeTime

INSTALLED = [name for name, row in BACKENDS.items() if row.flavour is None and row.installed()]
LAYER = "vision.layers.0.mlp.fc1"


def node(name: str, kind: str, run_ms: float, *, runs: int = 1, fused: tuple[str, ...] = ()) -> NodeTime:
    product = (name.partition("/")[0],) if kind == "MatMul" else ()
    return NodeTime(nodes=(name, *fused), products=product, kind=kind, run_ms=run_ms, runs=runs)


def test_nodes_are_added_up_by_layer() -> None:
    nodes = [
        node(LAYER, "MatMul", 4.0, runs=2),
        node(f"{LAYER}.bias", "Add", 1.0, runs=2),
        node(f"{LAYER}.weight.dequantize", "DequantizeLinear", 0.5, runs=2),
        node("node_matmul", "MatMul", 3.0, runs=2),
        node("node_softmax", "Softmax", 1.5, runs=2),
    ]
    rows = layer_times({"vision_trunk": nodes}, {}, runs=2)
    assert [row.layer for row in rows] == [f"vision_trunk/{LAYER}", "vision_trunk/(MatMul)", "vision_trunk/(Softmax)"]
    assert [row.time_ms for row in rows] == [5.5, 3.0, 1.5]
    assert [row.share for row in rows] == [0.55, 0.30, 0.15]
    assert rows[0].kinds == ["Add", "DequantizeLinear", "MatMul"]
    assert rows[0].runs == 3
    assert {(row.local_error, row.kept_high) for row in rows} == {(None, None)}


def test_layers_of_one_name_in_two_graphs_stay_apart() -> None:
    rows = layer_times({"a": [node("x.fc", "MatMul", 1.0)], "b": [node("x.fc", "MatMul", 2.0)]}, {}, runs=1)
    assert [(row.layer, row.time_ms) for row in rows] == [("b/x.fc", 2.0), ("a/x.fc", 1.0)]


def test_a_second_use_is_the_same_layer_and_a_numbered_layer_is_its_own() -> None:
    used_twice = [node("v.k_proj", "MatMul", 1.0), node("v.k_proj.1", "MatMul", 1.0), node("v.k_proj.1.bias", "Add", 1)]
    numbered = [node("reducer.1", "MatMul", 1.0), node("reducer.3", "MatMul", 1.0), node("reducer.3.bias", "Add", 1.0)]
    assert linear_layers([*used_twice, *numbered]) == {"v.k_proj", "reducer.1", "reducer.3"}
    rows = layer_times({"g": [*used_twice, *numbered]}, {}, runs=1)
    assert {row.layer: row.time_ms for row in rows} == {"g/v.k_proj": 3.0, "g/reducer.3": 2.0, "g/reducer.1": 1.0}


def test_layers_that_run_as_one_are_named_together() -> None:
    both = NodeTime(nodes=("a.q", "a.k"), products=("a.q", "a.k"), kind="MatMul", run_ms=2.0, runs=1)
    known = {
        "g/a.q": LayerReport(name="g/a.q", local_error=0.01),
        "g/a.k": LayerReport(name="g/a.k", local_error=0.3, reason="its error is 0.3"),
    }
    (row,) = layer_times({"g": [both]}, known, runs=1)
    assert (row.layer, row.local_error, row.kept_high) == ("g/a.q + a.k", 0.3, True)


def test_fused_nodes_bear_the_layers_name() -> None:
    fused = NodeTime(nodes=("node_mul_22",), products=("a.q",), kind="FullyConnected", run_ms=1.0, runs=1)
    late = node("a.q/MatMulAddFusion", "Gemm", 2.0)
    assert layer_times({"g": [fused]}, {}, runs=1)[0].layer == "g/a.q"
    rows = layer_times({"g": [node("a.q", "MatMul", 1.0), late]}, {}, runs=1)
    assert [(row.layer, row.time_ms) for row in rows] == [("g/a.q", 3.0)]


@pytest.mark.parametrize("backend", INSTALLED)
def test_every_graph_of_the_toy_is_timed(toy_bundle: Path, backend: str) -> None:
    report = profile(toy_bundle, runs=3, warm_up_runs=1, backend=backend, threads=1)
    assert (report.backend, report.variant, report.runs) == (backend, "fp32", 3)
    assert {row.layer.partition("/")[0] for row in report.layers} == set(report.graph_ms)
    assert len(report.graph_ms) == 6
    assert sum(row.share for row in report.layers) == pytest.approx(1.0)
    assert [row.time_ms for row in report.layers] == sorted((row.time_ms for row in report.layers), reverse=True)
    assert report.tokens >= 1
    decoder = [row for row in report.layers if row.layer == "language_decoder/(MatMul)"]
    assert all(row.runs % report.tokens == 0 for row in decoder)


def linears(bundle: Path) -> set[str]:
    """The names of the Linear layers as calibration finds them."""
    from edgevqa.calibration.linears import find_linears

    ir = pytest.importorskip("onnx_ir")
    opened = Bundle.open(bundle)
    found: set[str] = set()
    for graph in opened.variant("fp32").graphs:
        model = ir.load(opened.graph_path("fp32", graph))
        found |= {f"{graph}/{name}" for name in find_linears(model.graph)}
    return found


@pytest.mark.parametrize("backend", INSTALLED)
def test_every_linear_layer_of_the_reference_model_is_found_by_name(reference_bundle: Path, backend: str) -> None:
    report = profile(reference_bundle, runs=1, warm_up_runs=0, backend=backend, threads=1)
    named = {row.layer for row in report.layers if "/(" not in row.layer}
    assert named == linears(reference_bundle)
    assert len(named) > 50


@pytest.mark.parametrize("backend", INSTALLED)
def test_warm_up_runs_are_left_out(toy_bundle: Path, backend: str) -> None:
    cold, warm = (profile(toy_bundle, runs=2, warm_up_runs=warm_up, backend=backend, threads=1) for warm_up in (0, 3))
    assert {row.layer: row.runs for row in cold.layers if "MatMul" in row.layer} == {
        row.layer: row.runs for row in warm.layers if "MatMul" in row.layer
    }


def with_report(source: Path, target: Path, report: bytes) -> Bundle:
    """The bundle with a report beside its variant."""
    bundle = Bundle.open(source)
    with BundleWriter(target) as writer:
        graphs = {
            name: msgspec.structs.replace(
                spec, file=writer.add_bytes(bundle.graph_path("fp32", name).read_bytes(), spec.file.path)
            )
            for name, spec in bundle.variant("fp32").graphs.items()
        }
        assert bundle.tokenizer_path is not None
        assert bundle.manifest.text is not None
        text = msgspec.structs.replace(
            bundle.manifest.text, tokenizer=writer.add_bytes(bundle.tokenizer_path.read_bytes(), "tokenizer.json")
        )
        variant = msgspec.structs.replace(
            bundle.variant("fp32"), graphs=graphs, report=writer.add_bytes(report, "calibration/fp32.json")
        )
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants={"fp32": variant}, text=text))


def test_the_report_is_read_from_the_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    layers = [
        {"name": "g/a", "local_error": 0.02, "macs": 7, "reason": None},
        {"name": "g/b", "local_error": None, "high": True},
        {"name": "g/c", "local_error": 0.4, "high": False, "reason": "it was asked for"},
    ]
    bundle = with_report(toy_bundle, tmp_path / "told", msgspec.json.encode({"layers": layers, "variant": "fp32"}))
    found = read_layer_report(bundle, "fp32")
    assert [(each.local_error, each.kept_high) for each in found.values()] == [
        (0.02, False),
        (None, True),
        (0.4, False),
    ]
    assert list(found) == ["g/a", "g/b", "g/c"]
    assert profile(bundle.root, runs=1, warm_up_runs=0, threads=1).layers
    assert read_layer_report(Bundle.open(toy_bundle), "fp32") == {}


def test_a_broken_report_is_named(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = with_report(toy_bundle, tmp_path / "told", b'{"layers": 7}')
    with pytest.raises(BundleError, match=r"calibration/fp32\.json is no report of a variant"):
        read_layer_report(bundle, "fp32")


def test_there_is_at_least_one_run(toy_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 and 0"):
        profile(toy_bundle, runs=0)
    with pytest.raises(ConfigError, match="Unknown option speed"):
        profile(toy_bundle, speed=11)


def test_a_backend_without_times_says_so(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Graphs.load
    monkeypatch.setattr(
        Graphs,
        "load",
        lambda bundle, variant, backend, options: load(
            bundle, variant, backend, msgspec.structs.replace(options, profile=False)
        ),
    )
    with pytest.raises(ConfigError, match="onnxruntime cannot time its layers"):
        profile(toy_bundle, runs=1)
    with Pipeline.load(toy_bundle) as pipeline:
        assert pipeline.graphs.sessions
