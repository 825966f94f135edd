"""Real TensorRT-RTX engines, built without a GPU: nothing here can run them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import msgspec
import onnx_ir as ir
import pytest

from edgevqa.calibration import QuantizeOptions, quantize
from edgevqa.export.engine.build import build
from edgevqa.export.engine.capabilities import settled
from edgevqa.export.engine.flavours import load_toolkit
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.process import run_job
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.export.engine.protocol import Job
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import check_engine, load_record
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, InputError
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import read_header

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.tensorrt


@pytest.fixture
def bundle_path(reference_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))


def job(bundle: Bundle, graph: str, tmp_path: Path, **changes: object) -> Job:
    options = BuildOptions(target="rtx", **changes)  # type: ignore[arg-type]
    graphs = bundle.variant("fp32").graphs
    return Job(
        graph=graph,
        onnx=str(bundle.graph_path("fp32", graph)),
        engine=str(tmp_path / f"{graph}.engine"),
        profiles=graph_profiles(graph, graphs[graph], axis_ranges(bundle.manifest, graphs, options)),
        options=settled(options, "fp32", load_toolkit(options.row)),
        numerics="fp32",
        timing_cache=None,
    )


def test_every_graph_is_built_and_recorded(bundle_path: Path) -> None:
    built = build(bundle_path, BuildOptions(target="rtx", batch=(1, 4)))
    bundle = Bundle.open(bundle_path)
    record = load_record(bundle, "rtx/fp32")
    assert record == built.record
    graphs = bundle.variant("fp32").graphs
    assert set(record.graphs) == set(graphs)
    ranges = axis_ranges(bundle.manifest, graphs, BuildOptions(target="rtx", batch=(1, 4)), template=0)
    wanted = {name: graph_profiles(name, graph, ranges) for name, graph in graphs.items()}
    for name, engine in record.graphs.items():
        path = check_engine(bundle, "rtx/fp32", name, record)
        assert read_header(path).version == record.tensorrt_version
        assert [tensor.name for tensor in engine.inputs] == [t.name for t in bundle.graph("fp32", name).inputs]
        assert [tensor.dtype for tensor in engine.outputs] == [t.dtype for t in bundle.graph("fp32", name).outputs]
        assert engine.profiles == wanted[name], "as TensorRT-RTX tells of those that it was given"
        assert len(engine.profiles) == 2
        assert engine.fp32_layers is None, "an FP32 engine's layers are no news"
        assert engine.size_bytes == path.stat().st_size
    assert all(report.passed for report in bundle.verify())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "numerics"), [("fp16", "fp16"), ("int8", "s8-fp16"), ("mixed", "s8-fp16"), ("fp8", "fp8-fp16")]
)
def test_lower_precisions_are_built_with_two_profiles(bundle_path: Path, precision: str, numerics: str) -> None:
    search = (
        {"samples": 16, "max_drop": 50.0, "time_limit_s": 2.0, "min_agreement": 0.0}
        if precision == "mixed"
        else {"samples": 8}
    )
    options = {"precision": precision, "targets": ("rtx",), "data": "scenes:3:64", **search}
    quantize(bundle_path, QuantizeOptions(**options))  # type: ignore[arg-type]
    built = build(bundle_path, BuildOptions(target="rtx", precision=precision, batch=(1, 4)))
    record = built.record
    assert (record.numerics, set(record.graphs)) == (numerics, set(Bundle.open(bundle_path).variant("fp32").graphs))
    assert ("8.6" in record.compute_capabilities) is (precision != "fp8"), "GPUs before 8.9 have no FP8"
    for name, engine in record.graphs.items():
        assert len(engine.profiles) == 2
        assert not engine.high_layers, f"{name}: no matrix product is left in FP32"
    assert record.graphs["language_decoder"].high_operators, "T5's norms are computed in FP32"
    fp32 = build(bundle_path, BuildOptions(target="rtx", precision="fp32", batch=(1, 4))).record
    assert record.graphs["projector"].high_operators == {}
    assert sum(e.size_bytes for e in record.graphs.values()) < sum(e.size_bytes for e in fp32.graphs.values())


def test_a_stopped_build_goes_on_where_it_was(bundle_path: Path) -> None:
    options = BuildOptions(target="rtx", batch=(1,))
    seen: list[str] = []

    def stop_at_the_third(what: str, done: int, total: int) -> None:
        seen.append(what)
        if done == 2:
            raise KeyboardInterrupt

    before = {path: path.read_bytes() for path in bundle_path.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        build(bundle_path, options, report=stop_at_the_third)
    assert {path: path.read_bytes() for path in bundle_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in bundle_path.parent.iterdir()] == ["bundle"]
    built = build(bundle_path, options)
    assert len(built.reused) == 2
    again = build(bundle_path, options)
    assert again.reused == list(again.record.graphs), "the bundle has them all"
    assert again.record == built.record
    assert all(report.passed for report in Bundle.open(bundle_path).verify())
    assert not list((cache_dir() / "engines").glob("*")), "what the bundle has is not kept twice"
    assert not build(bundle_path, msgspec.structs.replace(options, optimization_level=2)).reused


def test_a_graph_that_tensorrt_refuses_names_graph_layer_and_fix(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    made = job(bundle, "projector", tmp_path)
    model = ir.load(made.onnx)
    node = next(node for node in model.graph if node.op_type == "Relu")
    node.op_type, node.domain = "NoSuchOperator", "com.example"
    model.opset_imports["com.example"] = 1
    ir.save(model, Path(made.onnx))
    with pytest.raises(CheckFailed, match=rf"graph 'projector', layer '{node.name}' \(NoSuchOperator\)"):
        run_job(made, lambda phase, resident: None)


def test_memory_over_the_budget_ends_the_build(bundle_path: Path, tmp_path: Path) -> None:
    made = job(Bundle.open(bundle_path), "language_decoder", tmp_path)
    with pytest.raises(CheckFailed, match=r"'language_decoder' took \d+ MB of memory; the budget is 100 MB"):
        run_job(made, lambda phase, resident: None, memory_budget_bytes=100_000_000)
    assert not Path(made.engine).exists()


def test_a_killed_child_is_reported_with_what_it_reached(bundle_path: Path, tmp_path: Path) -> None:
    made = job(Bundle.open(bundle_path), "language_decoder", tmp_path)

    def kill(phase: object, resident: float) -> None:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(EdgeVQAError, match=r"built graph 'language_decoder' was ended by SIGKILL at [\d,]+ MB"):
        run_job(made, kill)


def _children() -> list[int]:
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def test_impossible_options_are_refused_with_the_reason(bundle_path: Path) -> None:
    options = BuildOptions(
        target="rtx", version_compatible=True, refit=True, compute_capabilities=("8.7",), timing_cache="t"
    )
    with pytest.raises(InputError) as caught:
        build(bundle_path, options)
    for part in ("--version-compatible", "--refit", "--timing-cache", "8.7: this TensorRT-RTX knows"):
        assert part in str(caught.value)


def test_compute_capability_7_5_takes_no_fp32_product(bundle_path: Path, tmp_path: Path) -> None:
    made = job(Bundle.open(bundle_path), "projector", tmp_path, compute_capabilities=("7.5",))
    with pytest.raises(CheckFailed, match=r"Graph 'projector' keeps the FP32 product '.+', and .* 7\.5 takes none"):
        run_job(made, lambda phase, resident: None)
