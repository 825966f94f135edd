"""How ONNX Runtime is asked for a GPU, on a machine without one: where caches lie, and that nothing falls back silently.

Only ONNX Runtime's own session is a stand-in: it takes the arguments, computes on the CPU, and says what it was told to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import UnavailableError
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.sessions import ort_cuda, ort_rtx, ort_tensorrt
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.ort_providers import CUDA, RTX, TENSORRT, Provider

onnxruntime: Any = pytest.importorskip("onnxruntime")
CPU = "CPUExecutionProvider"
OWN: Any = onnxruntime.InferenceSession
SETTINGS: Any = onnxruntime.SessionOptions
PLUGIN = "stand_in_for_the_rtx_plugin"


class Asked:
    """What ONNX Runtime was asked for, and what it says that it has."""

    def __init__(self) -> None:
        self.has: list[str] = []
        self.sessions: list[dict[str, str]] = []
        self.providers: list[list[Any]] = []
        self.fallback: list[bool] = []
        self.writes = b"compiled"
        self.found: list[list[str]] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A build of ONNX Runtime that offers every provider."""
    told = Asked()

    class Session(OWN):  # type: ignore[misc]
        def __init__(self, path: str, settings: Any, *, enable_fallback: bool, providers: Any = None) -> None:
            given = providers[0][1] if providers else settings.given
            told.sessions.append(dict(given))
            told.providers.append(list(providers or []))
            told.fallback.append(enable_fallback)
            for name in ("trt_engine_cache_path", "nv_runtime_cache_path"):
                if name in given:
                    folder = Path(given[name])
                    told.found.append(sorted(file.name for file in folder.iterdir()))
                    (folder / "made.engine").write_bytes(told.writes)
            super().__init__(path, providers=[CPU])

        def get_providers(self) -> list[str]:
            return told.has

    class Settings(SETTINGS):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], given: dict[str, str]) -> None:
            self.given = {**given, "devices": str(len(devices))}

    plugin: Any = ModuleType(PLUGIN)
    plugin.get_library_path = lambda: "no library"
    monkeypatch.setitem(sys.modules, PLUGIN, plugin)
    monkeypatch.setattr(ort_rtx, "RTX", msgspec.structs.replace(RTX, plugin=PLUGIN))
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT.name, CUDA.name, CPU])
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [SimpleNamespace(ep_name=RTX.name)], raising=False)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: None, raising=False)
    return told


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def opened(bundle: Bundle, provider: Provider, graph: str = "projector", **given: str) -> None:
    """Open and close a graph, by the backend's own entry."""
    module: Any = {CUDA.name: ort_cuda, TENSORRT.name: ort_tensorrt, RTX.name: ort_rtx}[provider.name]
    module.open_session(bundle, "fp32", graph, SessionOptions(provider_options=given)).close()


def test_tensorrts_engines_and_timings_lie_in_the_users_cache(asked: Asked, bundle: Bundle) -> None:
    asked.has = [TENSORRT.name, CUDA.name, CPU]
    before = files(bundle.root)
    opened(bundle, TENSORRT)
    (given,) = asked.sessions
    folder = Path(given["trt_engine_cache_path"])
    assert folder.is_dir()
    assert cache_dir() in folder.parents
    assert bundle.root not in folder.parents
    assert given["trt_timing_cache_path"] == str(folder)
    assert (given["trt_engine_cache_enable"], given["trt_timing_cache_enable"]) == ("True", "True")
    assert files(bundle.root) == before
    assert {"made.engine", "sums.json"} == set(files(folder)), "what was made is hashed"
    opened(bundle, TENSORRT)
    assert Path(asked.sessions[1]["trt_engine_cache_path"]) == folder
    assert asked.found == [[], ["made.engine", "sums.json"]], "the second session finds what the first has made"


def test_an_engine_that_was_changed_in_the_cache_is_not_loaded(asked: Asked, bundle: Bundle) -> None:
    asked.has = [TENSORRT.name, CUDA.name, CPU]
    opened(bundle, TENSORRT)
    (Path(asked.sessions[0]["trt_engine_cache_path"]) / "made.engine").write_bytes(b"of somebody else")
    opened(bundle, TENSORRT)
    assert asked.found[1] == ["sums.json"]


def test_graphs_and_options_do_not_share_a_cache(asked: Asked, bundle: Bundle) -> None:
    asked.has = [TENSORRT.name, CUDA.name, CPU]
    opened(bundle, TENSORRT)
    opened(bundle, TENSORRT, "vision_trunk")
    opened(bundle, TENSORRT, trt_fp16_enable="True")
    assert len({given["trt_engine_cache_path"] for given in asked.sessions}) == 3


def test_rtx_keeps_what_it_compiles_in_the_users_cache(asked: Asked, bundle: Bundle) -> None:
    asked.has = [RTX.name, CPU]
    before = files(bundle.root)
    opened(bundle, RTX)
    (given,) = asked.sessions
    folder = Path(given["nv_runtime_cache_path"])
    assert folder.is_dir()
    assert cache_dir() / "ort-rtx" in folder.parents
    assert bundle.root not in folder.parents
    assert files(bundle.root) == before
    assert given["devices"] == "1"
    assert "device_id" not in given, "the device is the choice"


def test_cuda_compiles_nothing_that_could_be_kept(asked: Asked, bundle: Bundle) -> None:
    asked.has = [CUDA.name, CPU]
    before = files(bundle.root)
    opened(bundle, CUDA)
    assert not [name for name in asked.sessions[0] if "cache" in name]
    assert files(bundle.root) == before
    assert not [name for name in files(cache_dir()) if "engine" in name]


@pytest.mark.parametrize("provider", [TENSORRT, RTX], ids=lambda row: row.backend)
def test_without_a_cache_a_session_is_made_all_the_same(
    asked: Asked, bundle: Bundle, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "file"))
    asked.has = [provider.name, CPU]
    opened(bundle, provider)
    assert not [name for name in asked.sessions[0] if "cache" in name]


@pytest.mark.parametrize("provider", [CUDA, TENSORRT, RTX], ids=lambda row: row.backend)
def test_a_provider_is_asked_for_first_and_without_onnx_runtimes_own_fallback(
    asked: Asked, bundle: Bundle, provider: Provider
) -> None:
    asked.has = [provider.name, CPU]
    opened(bundle, provider, device_id="0")
    assert asked.fallback == [False]
    if not provider.plugin:
        names = [name for name, _ in asked.providers[0]]
        assert names == [provider.name, *provider.behind]
        assert CPU not in names


@pytest.mark.parametrize(
    ("provider", "has"),
    [
        (CUDA, [CPU]),
        (TENSORRT, [CPU]),
        (TENSORRT, [CUDA.name, CPU]),
        (RTX, [CPU]),
        (RTX, [CUDA.name, CPU]),
    ],
    ids=lambda value: value.backend if isinstance(value, Provider) else "+".join(value),
)
def test_a_session_without_its_provider_is_refused(
    asked: Asked, bundle: Bundle, provider: Provider, has: list[str]
) -> None:
    """ONNX Runtime makes one all the same, and would compute on the CPU, or on the provider behind."""
    asked.has = has
    with pytest.raises(UnavailableError, match=f"'{provider.backend}' cannot be used here") as caught:
        opened(bundle, provider)
    assert asked.sessions, "ONNX Runtime made the session"
    assert provider.needs in str(caught.value)
