"""The fp16 and bf16 variants of real bundles: what they hold, that they answer alike, and that nothing overflows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgevqa.calibration.casting.emulate import emulated_graphs
from edgevqa.calibration.casting.plan import CastPrecision
from edgevqa.calibration.casting.variant import CastVariantReport, write_cast_variant
from edgevqa.calibration.linears import find_linears
from edgevqa.calibration.observation.statistics import GraphStatistics
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.manifest import FileSpec, Manifest
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor

Pairs = Sequence[tuple[Any, str]]
Statistics = dict[str, GraphStatistics]
OPTIONS = PipelineOptions(threads=1)


class Recording:
    """A session that keeps what it is given."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.seen: list[dict[str, Array]] = []

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        self.seen.append({name: np.array(_host(value)) for name, value in inputs.items()})
        return self.session.run(inputs)

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _host(value: Tensor | Array) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def record(bundle: Bundle, pairs: Pairs) -> dict[str, list[dict[str, Array]]]:
    """What every graph of fp32 is given while pairs are answered, one by one and in a padded batch."""
    graphs = Graphs.load(bundle, "fp32", "onnxruntime", SessionOptions(threads=1))
    recordings = {name: Recording(session) for name, session in graphs.sessions.items()}
    recorded = Graphs(recordings, graphs.statistics)
    with Pipeline(bundle, recorded, OPTIONS, variant="fp32", backend="onnxruntime") as pipeline:
        for image, question in pairs:
            pipeline.answer(image, question)
        pipeline.clear_caches()
        pipeline.answer_pairs(pairs)
    return {name: recording.seen for name, recording in recordings.items()}


def observe(path: Path, calls: Sequence[dict[str, Array]]) -> GraphStatistics:
    """The largest |x| of every float tensor of a graph."""
    model = ir.load(path)
    given = set(model.graph.outputs)
    inner = [output for node in model.graph for output in node.outputs if output.dtype == ir.DataType.FLOAT]
    model.graph.outputs.extend(value for value in inner if value not in given)
    ir.save(model, path.with_suffix(".all"))
    session = ort.InferenceSession(str(path.with_suffix(".all")), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    absmax: dict[str, float] = {}
    for call in calls:
        found = [np.asarray(array) for array in session.run(None, call)]
        for name, array in [*zip(names, found, strict=True), *call.items()]:
            if array.dtype == np.float32:
                absmax[name] = max(absmax.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
    return GraphStatistics(inputs={}, absmax=absmax)


def statistics_of(bundle: Bundle, pairs: Pairs, folder: Path) -> Statistics:
    shutil.copytree(bundle.root / "graphs" / "fp32", folder)
    return {name: observe(folder / f"{name}.onnx", calls) for name, calls in record(bundle, pairs).items()}


def add_variant(bundle: Bundle, found: Statistics, precision: CastPrecision, **options: Any) -> Bundle:
    with BundleWriter.extend(bundle) as writer:
        spec = write_cast_variant(bundle, writer, found, precision, **options)
        return writer.finish(with_variants(bundle.manifest, {precision: spec}))


def with_variants(manifest: Manifest, new: dict[str, Any]) -> Manifest:
    return msgspec.structs.replace(manifest, variants={**manifest.variants, **new})


def report_of(bundle: Bundle, variant: str) -> CastVariantReport:
    spec = bundle.variant(variant).report
    assert spec is not None
    return msgspec.json.decode((bundle.root / spec.path).read_bytes(), type=CastVariantReport)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return [(np.asarray(sample.image), sample.question) for sample in open_dataset("scenes:7:12")]


@pytest.fixture(scope="module")
def cast_bundle(
    reference_bundle: Path, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Statistics]:
    """The reference bundle with fp16 and bf16, and what was observed."""
    folder = tmp_path_factory.mktemp("cast")
    shutil.copytree(reference_bundle, folder / "b")
    bundle = Bundle.open(folder / "b")
    found = statistics_of(bundle, pairs, folder / "all")
    return add_variant(add_variant(bundle, found, "fp16"), found, "bf16"), found


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_graphs_are_valid_and_typed_as_the_manifest_says(
    cast_bundle: tuple[Bundle, Statistics], precision: str
) -> None:
    bundle, _ = cast_bundle
    low = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    for name, spec in bundle.variant(precision).graphs.items():
        path = bundle.graph_path(precision, name)
        onnx.checker.check_model(path, full_check=True)
        onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True, check_type=True)
        model, exact = ir.load(path), ir.load(bundle.graph_path("fp32", name))
        assert spec.nodes.get("LayerNormalization") == bundle.graph("fp32", name).nodes.get("LayerNormalization")
        kept = {node.node for node in report_of(bundle, precision).graphs[name].kept}
        for linear in find_linears(exact.graph).values():
            for use in linear.uses:
                assert linear.name not in kept
                node = next(node for node in model.graph if node.name == use.node.name)
                assert node.outputs[0].dtype == low


def test_fp16_halves_the_weights(cast_bundle: tuple[Bundle, Statistics]) -> None:
    bundle, _ = cast_bundle
    sizes = [spec.size_bytes for name in ("fp16", "fp32") if (spec := bundle.variant(name).weights) is not None]
    assert sizes[0] < 0.52 * sizes[1]  # the tables of T5's norms stay float32


def test_only_rms_norms_stay_fp32_on_the_reference_model(cast_bundle: tuple[Bundle, Statistics]) -> None:
    bundle, _ = cast_bundle
    report = report_of(bundle, "fp16")
    kept = [node for graph in report.graphs.values() for node in graph.kept]
    assert {node.reason for node in kept} == {"rms_norm"}
    assert sum(node.operator == "Sqrt" for node in kept) == 5 + 5 + 7  # two T5 encoders of 2 layers, one decoder
    assert {dtype for name, dtype in report.boundaries.items() if name != "logits"} == {"float16"}
    assert report.boundaries["logits"] == "float32"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_tensor_has_one_type_in_all_graphs(cast_bundle: tuple[Bundle, Statistics], precision: str) -> None:
    bundle, _ = cast_bundle
    types: dict[str, set[str]] = {}
    for spec in bundle.variant(precision).graphs.values():
        for tensor in (*spec.inputs, *spec.outputs):
            types.setdefault(tensor.name.replace("new_", "past_"), set()).add(tensor.dtype)
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


@pytest.mark.parametrize(("precision", "unit"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_each_graph_stays_within_the_rounding_of_its_depth(
    cast_bundle: tuple[Bundle, Statistics], pairs: Pairs, tmp_path: Path, precision: str, unit: float
) -> None:
    """Every operator rounds by half a unit, `unit`, of its largest value; errors of n operators add up as their root."""
    bundle, _ = cast_bundle
    calls = record(bundle, pairs[:4])
    with_fp32 = Graphs.load(bundle, "fp32", "onnxruntime", SessionOptions(threads=1))
    emulated = emulated_graphs(bundle, precision, tmp_path, SessionOptions(threads=1))
    for name, session in emulated.sessions.items():
        depth = sum(bundle.graph(precision, name).nodes.values())
        dtypes = {spec.name: spec.dtype for spec in session.inputs}
        for call in calls[name][:6]:
            found = session.run({key: array.astype(dtypes[key]) for key, array in call.items()})
            for key, exact in with_fp32.sessions[name].run(call).items():
                wanted = exact.numpy()
                difference = np.abs(found[key].numpy() - wanted).max()
                assert difference <= unit * depth**0.5 * np.abs(wanted).max(), (name, key)
    with_fp32.close()
    emulated.close()


def answers(pipeline: Pipeline, pairs: Pairs) -> list[str]:
    """Texts of single, batched, beam, streamed and restricted answers."""
    found = [pipeline.answer(image, question) for image, question in pairs]
    pipeline.clear_caches()
    found += pipeline.answer_pairs(pairs)
    found += pipeline.answer_pairs(pairs[:3], num_beams=3)
    found += [pipeline.answer(image, text, choices=["yes", "no", "2", "red"]) for image, text in pairs[:3]]
    assert all(np.isfinite(answer.log_probability) for answer in found)
    return [answer.text for answer in found] + ["".join(pipeline.stream(*pairs[0]))]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_answers_are_the_same(
    cast_bundle: tuple[Bundle, Statistics], pairs: Pairs, tmp_path: Path, precision: str
) -> None:
    bundle, _ = cast_bundle
    with Pipeline.from_bundle(bundle, msgspec.structs.replace(OPTIONS, precision="fp32")) as pipeline:
        wanted = answers(pipeline, pairs)
    graphs = emulated_graphs(bundle, precision, tmp_path, SessionOptions(threads=1))
    with Pipeline(bundle, graphs, OPTIONS, variant=precision, backend="onnxruntime") as pipeline:
        assert answers(pipeline, pairs) == wanted
    if precision == "fp16":
        with Pipeline.from_bundle(bundle, msgspec.structs.replace(OPTIONS, precision="fp16")) as pipeline:
            assert answers(pipeline, pairs) == wanted


@pytest.mark.usefixtures("openvino")
def test_openvino_runs_bf16(cast_bundle: tuple[Bundle, Statistics], pairs: Pairs) -> None:
    bundle, _ = cast_bundle
    with Pipeline.from_bundle(bundle, msgspec.structs.replace(OPTIONS, precision="fp32")) as pipeline:
        wanted = [pipeline.answer(*pair).text for pair in pairs]
    options = msgspec.structs.replace(OPTIONS, precision="bf16", backend="openvino")
    with Pipeline.from_bundle(bundle, options) as pipeline:
        assert [pipeline.answer(*pair).text for pair in pairs] == wanted


@pytest.fixture(scope="module")
def planted(
    reference_bundle: Path, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Statistics]:
    """T5's `wo` 2,000 times as large in the last encoder layer, and the projector's output 10,000 times."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(reference_bundle, folder / "b")
    bundle = Bundle.open(folder / "b")
    for name, weight, factor in (
        ("language_encoder", "language_model.encoder.block.1.layer.1.DenseReluDense.wo.weight", 2_000.0),
        ("projector", None, 10_000.0),
    ):
        bundle = scaled(bundle, name, weight, factor)
    return bundle, statistics_of(bundle, pairs[:4], folder / "all")


def scaled(bundle: Bundle, name: str, weight: str | None, factor: float) -> Bundle:
    """The bundle with one weight (None: the graph's last Linear's, and its bias) multiplied."""
    with BundleWriter.extend(bundle) as writer:
        relative = f"graphs/fp32/{name}.onnx"
        model = onnx.load(bundle.graph_path("fp32", name), load_external_data=False)
        external = bundle.root / "graphs" / "fp32" / "weights.data"
        linears = list(find_linears(ir.serde.deserialize_model(model).graph).values())
        names = [weight] if weight else [linears[-1].weight.name, linears[-1].bias.name if linears[-1].bias else ""]
        for tensor in model.graph.initializer:
            if tensor.name in names:
                array = read_tensor(tensor, external) * np.float32(factor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, writer.path(relative))
        fp32 = bundle.variant("fp32")
        file: FileSpec = writer.describe(relative)
        graphs = {**fp32.graphs, name: msgspec.structs.replace(fp32.graphs[name], file=file)}
        manifest = with_variants(bundle.manifest, {"fp32": msgspec.structs.replace(fp32, graphs=graphs)})
        return writer.finish(manifest)


def read_tensor(tensor: onnx.TensorProto, external: Path) -> Array:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if not where:
        return onnx.numpy_helper.to_array(tensor)
    data = external.read_bytes()[int(where["offset"]) :][: int(where["length"])]
    return np.frombuffer(data, np.float32).reshape(tensor.dims)


def test_planted_overflow_gives_no_answer_when_cast_without_a_check_and_the_same_with_it(
    planted: tuple[Bundle, Statistics], pairs: Pairs, tmp_path: Path
) -> None:
    bundle, found = planted
    assert found["projector"].absmax["image_embeds"] > 65_504
    with Pipeline.from_bundle(bundle, msgspec.structs.replace(OPTIONS, precision="fp32")) as pipeline:
        wanted = [pipeline.answer(*pair) for pair in pairs[:4]]
    naive = add_variant(bundle, found, "fp16", margin=None)
    with emulated(naive, tmp_path / "naive") as pipeline, pytest.raises(Exception, match="not finite"):
        pipeline.answer(*pairs[0])
    checked = add_variant(naive, found, "fp16")
    with emulated(checked, tmp_path / "checked") as pipeline:
        answered = [pipeline.answer(*pair) for pair in pairs[:4]]
    assert [answer.text for answer in answered] == [answer.text for answer in wanted]
    report = report_of(checked, "fp16")
    overflows = [node for graph in report.graphs.values() for node in graph.kept if node.reason == "overflow"]
    assert {node.operator for node in overflows} >= {"MatMul", "Add"}
    assert all(node.absmax is not None and node.absmax > 65_504 / 8 for node in overflows)
    assert report.boundaries["image_embeds"] == "float32"
    for graph in ("projector", "language_encoder"):
        spec = bundle_tensor(checked, graph, "image_embeds")
        assert spec == "float32"


def bundle_tensor(bundle: Bundle, graph: str, name: str) -> str:
    spec = bundle.graph("fp16", graph)
    return next(tensor.dtype for tensor in (*spec.inputs, *spec.outputs) if tensor.name == name)


def emulated(bundle: Bundle, folder: Path) -> Pipeline:
    folder.mkdir()
    graphs = emulated_graphs(bundle, "fp16", folder, SessionOptions(threads=1))
    return Pipeline(bundle, graphs, OPTIONS, variant="fp16", backend="onnxruntime")


def test_the_golden_model_answers_the_same(
    golden_bundle: Callable[[str], Path], golden: Callable[[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Question-aware from half its height, trained on nothing: the closest calls there are."""
    shutil.copytree(golden_bundle("late"), tmp_path / "b")
    bundle = Bundle.open(tmp_path / "b")
    arrays = golden("late")
    asked = [
        (arrays[f"image{arrays[f'{case}_image_index'][0]}"], str(arrays[f"{case}_questions_raw"][0]))
        for case in ("s0", "s1", "s2")
    ]
    bundle = add_variant(bundle, statistics_of(bundle, asked, tmp_path / "all"), "fp16")
    with Pipeline.from_bundle(bundle, msgspec.structs.replace(OPTIONS, precision="fp32")) as pipeline:
        wanted = [pipeline.answer(*pair, max_new_tokens=12).tokens for pair in asked]
    with emulated(bundle, tmp_path / "graphs") as pipeline:
        assert [pipeline.answer(*pair, max_new_tokens=12).tokens for pair in asked] == wanted
