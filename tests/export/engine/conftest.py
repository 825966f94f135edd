"""The builder simulator in place of TensorRT, and jobs for the building process, which then runs in this one."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

TESTS = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """A simulator as the module that the others import; tests are in no package that could be imported."""
    whole = f"tests.simulators.{name}"
    if whole not in sys.modules:
        spec = importlib.util.spec_from_file_location(whole, TESTS / "simulators" / f"{name}.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is missing")
        module = importlib.util.module_from_spec(spec)
        sys.modules[whole] = module
        spec.loader.exec_module(module)
    return sys.modules[whole]


for _part in (
    "tensorrt_types",
    "builder_types",
    "builder_network",
    "builder_inspector",
    "builder_simulator",
):
    load(_part)

from edgevqa.export.engine import build as building  # noqa: E402
from edgevqa.export.engine import child  # noqa: E402
from edgevqa.export.engine.capabilities import settled  # noqa: E402
from edgevqa.export.engine.flavours import load_toolkit  # noqa: E402
from edgevqa.export.engine.options import BuildOptions  # noqa: E402
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles  # noqa: E402
from edgevqa.export.engine.protocol import Built, Inspected, Job, Message, Phase, encode_line  # noqa: E402
from edgevqa.runtime.bundle import Bundle  # noqa: E402
from edgevqa.runtime.bundle_writer import BundleWriter  # noqa: E402
from edgevqa.runtime.manifest import Numerics  # noqa: E402
from tests.simulators.builder_simulator import BuilderSimulator  # noqa: E402
from tests.simulators.builder_types import Version  # noqa: E402

Install = Callable[..., BuilderSimulator]
MakeJob = Callable[..., Job]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """A simulated TensorRT of a version, on a machine of `arch`; `build` then builds with it in this process."""

    def in_this_process(job: Job, tell: Any, *, memory_budget_bytes: int | None = None, again: str = "") -> Built:
        """As `run_job`, and every line takes its way as JSON."""
        lines: list[Message] = []

        def send(message: Message) -> None:
            lines.append(msgspec.json.decode(encode_line(message), type=Message))
            if isinstance(lines[-1], Phase):
                tell(lines[-1], 100.0)

        child.build(msgspec.json.decode(encode_line(job), type=Job), child.Stop(), send)
        built, inspected = lines[-2:]
        if not isinstance(built, Built) or not isinstance(inspected, Inspected):
            raise TypeError(f"expected an engine and what it says of itself, but got {lines[-2:]}")
        return inspected.added_to(built)

    def make(
        name: str = "tensorrt", version: Version = (10, 3, 0, 30), *, arch: str = "x86_64", **settings: Any
    ) -> Any:
        module = BuilderSimulator(name, version, **settings)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(platform, "machine", lambda: arch)
        monkeypatch.setattr(building, "run_job", in_this_process)
        return module

    return make


@pytest.fixture
def make_job(reference_bundle: Path, tmp_path: Path) -> MakeJob:
    """A job for one graph of the reference bundle."""
    bundle = Bundle.open(reference_bundle)
    graphs = bundle.variant("fp32").graphs

    def make(
        name: str = "server-trt10", *, graph: str = "vision_fusion", numerics: Numerics = "fp16", **given: Any
    ) -> Job:
        options = BuildOptions(target=name, **given)
        ranges = axis_ranges(bundle.manifest, graphs, options)
        return Job(
            graph=graph,
            onnx=str(bundle.graph_path("fp32", graph)),
            engine=str(tmp_path / f"{graph}.engine"),
            profiles=graph_profiles(graph, graphs[graph], ranges),
            options=settled(options, numerics, load_toolkit(options.row)) if name == "rtx" else options,
            numerics=numerics,
            timing_cache=str(tmp_path / "timing" / "own.cache"),
        )

    return make


@pytest.fixture
def half_bundle(reference_bundle: Path, tmp_path: Path) -> Path:
    """The reference bundle, whose variant calls itself FP16: no kernel is built here."""
    path = Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(path)
    spec = msgspec.structs.replace(bundle.variant("fp32"), precision="fp16", numerics="fp16")
    with BundleWriter.extend(bundle) as writer:
        variants = {**bundle.manifest.variants, "fp16": spec}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    return path
