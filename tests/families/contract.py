"""What every family must hold, on a small random model of its true architecture saved as the hub would have it.

A test file makes a subclass for each kind of checkpoint that the family takes (`class TestVit(FamilyContract)`), with `make`
and what the model's own processor gives; the rest is the same for all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevqa.calibration import CalibrateOptions, QuantizeOptions, calibrate, quantize
from edgevqa.export import ExportOptions, export
from edgevqa.export.engine import child
from edgevqa.export.engine.capabilities import settled
from edgevqa.export.engine.flavours import load_toolkit
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.export.engine.protocol import Job
from edgevqa.export.families import FAMILIES
from edgevqa.export.samples import PICTURES
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.sessions.trt.profiles import EngineInputs, choose_profile

PREPROCESSING_TOLERANCE = 1e-5
FAMILY_TOLERANCE = 1e-4
DATA = "scenes:3:64"
QUESTION = "what color is the ball on the left?"
SIZES = ((48, 80), (131, 97))  # height, width of pictures that every processor must prepare as the model's own does


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured patches with some noise."""
    random = np.random.default_rng(seed)
    rough = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    smooth = rough.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    pixels: NDArray[np.uint8] = np.clip(smooth + random.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    return pixels


class FamilyContract:
    """Subclass it as `Test...` and give what is declared here."""

    family: ClassVar[str]
    """The name in the registry."""
    graphs: ClassVar[frozenset[str]]
    """The graphs that the bundle must have."""
    answers: ClassVar[int] = 4
    """At least so many answers are compared with the eager model's."""
    quantized: ClassVar[bool] = True
    """Whether the INT8 and FP16 variants are made of this checkpoint: True for one class of a family at least."""

    @classmethod
    def make(cls, folder: Path) -> None:
        """Save a small random model with all its files into `folder`, as `save_pretrained` writes them."""
        raise NotImplementedError

    @classmethod
    def processed(cls, folder: Path, rgb: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """What the model's own processor makes of a picture: the arrays that the graphs take, by their names there."""
        raise NotImplementedError

    @classmethod
    def prompt_ids(cls, folder: Path, question: str) -> list[int] | None:
        """The ids that the model's own processor makes of a question, one image token for a picture; None without text."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp(cls.family) / "checkpoint"
        folder.mkdir()
        cls.make(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def bundle_path(cls, folder: Path) -> Path:
        """The bundle; exporting compares graphs and answers with the eager model, or fails."""
        path = folder.parent / "family.bundle"
        export(str(folder), path, ExportOptions())
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def quantized_path(cls, bundle_path: Path) -> Path:
        """The bundle with INT8 for CPUs and for TensorRT, and FP16."""
        if not cls.quantized:
            pytest.skip("another checkpoint of the family is quantised")
        path = bundle_path.parent / "quantized.bundle"
        shutil.copytree(bundle_path, path)
        calibrate(path, CalibrateOptions(data=DATA, samples=8))
        quantize(path, QuantizeOptions(precision="fp16", targets=("rtx",)))
        quantize(path, QuantizeOptions(precision="int8", targets=("cpu", "rtx")))
        return path

    def test_every_graph_and_answer_is_the_eager_models(self, bundle_path: Path) -> None:
        manifest = Bundle.open(bundle_path).manifest
        assert manifest.family == self.family
        assert set(manifest.variants["fp32"].graphs) == self.graphs
        parity = manifest.parity["fp32"]
        for graph in self.graphs:
            rows = [row for row in parity.rows if row.graph == graph]
            assert {row.samples for row in rows} == {"random", "real"}, graph
            for row in rows:
                assert row.passed
                assert row.max_abs_diff <= FAMILY_TOLERANCE, (row.graph, row.output)
        assert parity.answers_identical == parity.answers_compared >= self.answers

    def test_the_registry_tells_what_it_is(self, folder: Path, bundle_path: Path) -> None:
        entry = FAMILIES[self.family]
        assert Bundle.open(bundle_path).manifest.task in entry.tasks
        config = folder / "config.json"
        told = json.loads(config.read_text()) if config.is_file() else {}
        assert told.get("model_type") in (None, *entry.model_types)
        assert not entry.architectures or set(told["architectures"]) & set(entry.architectures)

    @pytest.mark.parametrize("size", SIZES)
    def test_pictures_are_prepared_as_by_the_models_processor(
        self, folder: Path, bundle_path: Path, size: tuple[int, int]
    ) -> None:
        rgb, spec = picture(*size), Bundle.open(bundle_path).manifest.image
        assert spec is not None
        found, expected = prepare(rgb, spec).inputs, self.processed(folder, rgb)
        assert set(expected) <= set(found)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=PREPROCESSING_TOLERANCE, err_msg=name)

    def test_questions_are_tokenized_as_by_the_models_processor(self, folder: Path, bundle_path: Path) -> None:
        expected = self.prompt_ids(folder, QUESTION)
        questions = Questions.of(Bundle.open(bundle_path))
        assert (questions.main is None) == (expected is None)
        if expected is not None:
            assert list(questions.question(QUESTION).ids) == expected

    def test_lower_precisions_answer(self, quantized_path: Path) -> None:
        image = PICTURES / sorted(file.name for file in PICTURES.glob("*.png"))[0]
        variants = Bundle.open(quantized_path).manifest.variants
        assert {variant.numerics for variant in variants.values()} >= {"fp32", "fp16", "u8-fp32", "s8-fp16"}
        for name, variant in variants.items():
            quantizers = sum(graph.nodes.get("QuantizeLinear", 0) for graph in variant.graphs.values())
            assert (quantizers > 0) == (variant.precision == "int8"), name
            with Pipeline.load(quantized_path, precision=name, backend="onnxruntime") as pipeline:
                answer = pipeline.answer(image, QUESTION)
            assert np.isfinite(answer.log_probability), name

    def test_every_shape_that_occurs_lies_within_a_profile_of_its_engine(
        self, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pictures of many shapes, alone and in batches: nothing that the runtime asks is refused by engines."""
        with Pipeline.load(bundle_path, backend="onnxruntime", max_batch=4) as pipeline:
            graphs, main = pipeline.bundle.variant("fp32").graphs, Questions.of(pipeline.bundle).main
            options = BuildOptions(target="rtx", batch=(1, 4))
            template = None if main is None else main.template_tokens
            ranges = axis_ranges(pipeline.manifest, graphs, options, template=template)
            capacity = ranges[0]["capacity"][0]  # an engine's has one size, which the runtime takes from it
            run = pipeline.graphs.run

            def checked(name: str, inputs: Mapping[str, Any], *, stage: str | None = None) -> Any:
                specs, profiles = graphs[name].inputs, graph_profiles(name, graphs[name], ranges)
                shapes = {
                    spec.name: tuple(
                        capacity if axis == "capacity" else size
                        for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
                    )
                    for spec in specs
                }
                choose_profile(EngineInputs(graph=name, target="rtx", specs=specs, profiles=profiles), shapes)
                return run(name, inputs, stage=stage)

            monkeypatch.setattr(pipeline.graphs, "run", checked)
            pictures = [picture(*size) for size in (*SIZES, (64, 64), (300, 90))]
            assert len(pipeline.answer_pairs([(image, QUESTION) for image in pictures], max_new_tokens=3)) == len(
                pictures
            )
            for image in pictures:
                assert len(pipeline.answer(image, [QUESTION, "is it red?"], max_new_tokens=3)) == 2

    @pytest.mark.tensorrt
    @pytest.mark.parametrize("precision", ["fp16", "s8-fp16"])
    def test_every_graph_becomes_an_engine(self, quantized_path: Path, precision: str, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx")
        bundle, options = Bundle.open(quantized_path), BuildOptions(target="rtx", batch=(1, 2))
        variant = next(name for name, each in bundle.manifest.variants.items() if each.numerics == precision)
        graphs = bundle.variant(variant).graphs
        ranges = axis_ranges(bundle.manifest, graphs, options)
        numerics, toolkit = bundle.variant(variant).numerics, load_toolkit(options.row)
        for name, spec in graphs.items():
            job = Job(
                graph=name,
                onnx=str(bundle.graph_path(variant, name)),
                engine=str(tmp_path / f"{name}.engine"),
                profiles=graph_profiles(name, spec, ranges),
                options=settled(options, numerics, toolkit),
                numerics=numerics,
                timing_cache=None,
            )
            built = child.build(job, child.Stop(), lambda phase: None)
            assert [tensor.name for tensor in built.inputs] == [tensor.name for tensor in spec.inputs]
            assert (tmp_path / f"{name}.engine").stat().st_size > 0
