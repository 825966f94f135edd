"""The building process's own part, run in this process: what it tells, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevqa.export.engine import child
from edgevqa.export.engine.capabilities import built_for, settled
from edgevqa.export.engine.flavours import load_toolkit
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.export.engine.protocol import Job
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import InputError, UnavailableError
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.plans import read_header
from edgevqa.runtime.processes import ORPHANED
from edgevqa.runtime.targets import target

trt = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.tensorrt


def job(bundle: Bundle, tmp_path: Path, *, numerics: Numerics = "fp32", name: str = "rtx", **given: Any) -> Job:
    options = BuildOptions(target=name, **given)
    graphs = bundle.variant("fp32").graphs
    return Job(
        graph="projector",
        onnx=str(bundle.graph_path("fp32", "projector")),
        engine=str(tmp_path / "projector.engine"),
        profiles=graph_profiles("projector", graphs["projector"], axis_ranges(bundle.manifest, graphs, options)),
        options=settled(options, numerics, load_toolkit(target("rtx"))),
        numerics=numerics,
        timing_cache=None,
    )


@pytest.fixture
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle)


def test_the_version_is_that_of_the_plan(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JetPack's Python package tells three of its four numbers, and the plan is refused by one that has another fourth."""
    whole = str(trt.__version__)
    monkeypatch.setattr(trt, "__version__", whole.rpartition(".")[0])
    made = job(bundle, tmp_path)
    built = child.build(made, child.Stop(), lambda phase: None)
    assert ".".join(map(str, built.version)) == whole
    assert built.version == read_header(Path(made.engine)).version


@pytest.mark.parametrize(("numerics", "rounds"), [("fp32", False), ("s8-fp32", False), ("fp16", True)])
def test_float32_is_computed_in_float32(bundle: Bundle, tmp_path: Path, numerics: Numerics, rounds: bool) -> None:
    """TensorRT rounds its factors to TF32 otherwise; what an FP16 engine keeps in FP32 it may round so."""
    toolkit = load_toolkit(target("rtx"))
    builder = trt.Builder(child.make_logger(trt))
    config = child._configure(toolkit, builder, job(bundle, tmp_path, numerics=numerics))
    assert config.get_flag(trt.BuilderFlag.TF32) is rounds


def test_a_builder_that_cannot_be_made_is_unavailable() -> None:
    class Broken:
        @staticmethod
        def Builder(logger: Any) -> None:
            logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(UnavailableError, match="cannot build here: CUDA initialization failure with error: 35"):
        child._builder(Broken, child.make_logger(trt))


def test_a_dla_core_that_is_not_there_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """An Orin Nano has the target of boards that have some."""
    builder = trt.Builder(child.make_logger(trt))
    made = job(bundle, tmp_path, name="jetson-orin-jp6", dla_core=0)
    with pytest.raises(InputError, match="--dla-core 0: TensorRT finds 0 DLA cores here"):
        child._configure(load_toolkit(target("rtx")), builder, made)


def test_it_does_not_begin_for_a_parent_that_is_gone() -> None:
    command = [sys.executable, "-m", "edgevqa.export.engine.child"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (ORPHANED, b"")


def test_it_sets_what_the_record_lists(bundle: Bundle, tmp_path: Path) -> None:
    toolkit = load_toolkit(target("rtx"))
    builder = trt.Builder(child.make_logger(trt))
    kinds: tuple[Numerics, ...] = ("fp16", "fp8-fp16")
    for numerics in kinds:
        made = job(bundle, tmp_path, numerics=numerics)
        config = child._configure(toolkit, builder, made)
        found = [config.get_compute_capability(number) for number in range(config.num_compute_capabilities)]
        told = built_for(BuildOptions(target="rtx"), numerics, toolkit)
        assert [f"SM{each.replace('.', '')}" for each in told] == [each.name for each in found]


def test_a_timing_cache_is_looked_at_before_the_graph_is_read(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Any, job: Job, logger: Any) -> None:
        raise InputError("no timing cache")

    monkeypatch.setattr(child, "open_timing_cache", refuse)
    monkeypatch.setattr(child, "parse_network", lambda *_: pytest.fail("it was read"))
    with pytest.raises(InputError, match="no timing cache"):
        child.build(job(bundle, tmp_path), child.Stop(), lambda phase: None)
