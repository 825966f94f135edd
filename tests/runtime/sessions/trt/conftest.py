"""The strict simulators in place of TensorRT and cuda-python, and bundles with simulated engines."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__)
TESTS = HERE.parents[3]


def load(name: str, path: Path) -> ModuleType:
    """A file of the tests as the module `name`; tests are in no package that could be imported."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is missing")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


for _part in (
    "writes",
    "cuda_parts",
    "simulated_memory",
    "cuda_simulator",
    "tensorrt_types",
    "context_simulator",
    "tensorrt_simulator",
    "bench",
    "engine_files",
    "typed_uploads",
):
    load(f"tests.simulators.{_part}", TESTS / "simulators" / f"{_part}.py")

_TOY = load("toy_model_of_trt", TESTS / "runtime" / "pipelines" / "conftest.py")
toy_bundle = _TOY.toy_bundle
pictures = _TOY.pictures
make_toy = _TOY.make_toy
decoder_only_bundle = _TOY.decoder_only_bundle
make_decoder_only = _TOY.make_decoder_only

from edgevqa.runtime.bundle import Bundle  # noqa: E402
from edgevqa.runtime.sessions import open_session  # noqa: E402
from edgevqa.runtime.sessions.base import Session, SessionOptions  # noqa: E402
from tests.simulators.bench import Bench  # noqa: E402
from tests.simulators.cuda_simulator import CudaSimulator  # noqa: E402
from tests.simulators.engine_files import VERSIONS, add_engines  # noqa: E402
from tests.simulators.tensorrt_simulator import TensorRTSimulator  # noqa: E402
from tests.simulators.typed_uploads import note_dtypes  # noqa: E402

Open = Callable[..., Session]


class Simulated:
    """What a test has of the simulators."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.start()
        note_dtypes(patch, lambda: self.cuda)

    def start(self, **settings: Any) -> None:
        """A GPU with other traits than the usual."""
        self.cuda = CudaSimulator(**settings)
        self.cuda.__spec__ = importlib.machinery.ModuleSpec("cuda.bindings.runtime", None)
        self.patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        self.modules: dict[str, TensorRTSimulator] = {}
        for name in ("tensorrt", "tensorrt_rtx"):
            self.install(name)

    def install(self, name: str, version: tuple[int, int, int, int] | None = None) -> None:
        flavour = "tensorrt-rtx" if name == "tensorrt_rtx" else "tensorrt"
        self.modules[name] = TensorRTSimulator(name, self.cuda, version or VERSIONS[flavour])
        self.patch.setitem(sys.modules, name, self.modules[name])

    def remove(self, name: str) -> None:
        """As if the package were not installed."""
        self.modules.pop(name, None)
        self.patch.setitem(sys.modules, name, None)

    def left(self) -> list[str]:
        """What was not released."""
        gc.collect()
        contexts = [f"a context of {name}" for name, module in self.modules.items() for _ in module.contexts]
        return self.cuda.leaks() + contexts


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    """TensorRT and TensorRT-RTX on a simulated GPU. Whatever a test leaves allocated fails it."""
    made = Simulated(monkeypatch)
    gc.freeze()  # what was there before is none of this test's, and walking it again for every test takes minutes
    try:
        yield made
        assert made.left() == []
    finally:
        gc.unfreeze()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def engines(tmp_path: Path) -> Callable[..., Path]:
    """Copy a bundle and add simulated engines (see `add_engines`); gives the copy's path."""

    def make(source: Path, *names: str, **settings: Any) -> Path:
        path = Path(shutil.copytree(source, tmp_path / f"{source.name}.{len(list(tmp_path.iterdir()))}"))
        for name in names or ("server-trt10",):
            add_engines(path, name, **settings)
        return path

    return make


AXES = {"positions": (5, 8, 16)}


@pytest.fixture
def path(engines: Callable[..., Path], toy_bundle: Path) -> Path:
    return engines(toy_bundle, axes=AXES)


@pytest.fixture
def open_graph(simulated: Any, path: Path) -> Iterator[Open]:
    """Open a graph of the bundle; the sessions are closed at the end."""
    made: list[Session] = []

    def start(graph: str = "vision_trunk", backend: str = "tensorrt", at: Path = path, **given: str) -> Session:
        options = SessionOptions(provider_options=given)
        made.append(open_session(Bundle.open(at), "fp32", graph, backend=backend, options=options))
        return made[-1]

    yield start
    for session in made:
        session.close()
