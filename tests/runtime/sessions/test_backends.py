"""The table of backends."""

from __future__ import annotations

import importlib

import msgspec
import pytest

from edgevqa.runtime import sessions
from edgevqa.runtime.errors import ConfigError, MissingExtraError
from edgevqa.runtime.sessions import BACKENDS, Backend, choose_backend, possible_backends, uses_gpu

ABSENT = Backend(
    name="absent",
    module="edgevqa.runtime.sessions.ort",
    package="package_that_is_absent",
    extra="dream",
    distributions=("package-that-is-absent",),
    likes=(),
)


@pytest.fixture(autouse=True)
def no_choice_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEVQA_BACKEND", raising=False)


def test_auto_is_all_that_are_installed_in_the_tables_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {"absent": ABSENT, **BACKENDS})
    assert choose_backend("auto").name == "onnxruntime"
    installed = [name for name, row in BACKENDS.items() if row.installed() and row.automatic]
    assert [row.name for row in possible_backends("auto")] == installed
    assert [row.name for row in possible_backends("onnxruntime")] == ["onnxruntime"]


def test_a_backend_that_is_not_installed_is_answered_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {"absent": ABSENT})
    for name in ("auto", "absent"):
        with pytest.raises(MissingExtraError, match=r"pip install 'edgevqa\[dream\]'"):
            choose_backend(name)


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'warp'; expected auto, onnxruntime, openvino"):
        choose_backend("warp")


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {**BACKENDS, "second": msgspec.structs.replace(ABSENT, package="numpy")})
    monkeypatch.setenv("EDGEVQA_BACKEND", "second")
    assert [row.name for row in possible_backends("auto")] == ["absent"]
    assert [row.name for row in possible_backends("onnxruntime")] == ["onnxruntime"]
    monkeypatch.setenv("EDGEVQA_BACKEND", "warp")
    with pytest.raises(ConfigError, match=r"'warp' \(from EDGEVQA_BACKEND\); expected auto"):
        possible_backends("auto")


def test_versions_are_those_of_the_packages() -> None:
    assert BACKENDS["onnxruntime"].version() == importlib.import_module("onnxruntime").__version__
    assert ABSENT.version() == "unknown"


@pytest.mark.parametrize("name", BACKENDS)
def test_every_row_names_a_module_that_opens_sessions(name: str) -> None:
    row = BACKENDS[name]
    assert row.name == name
    assert callable(importlib.import_module(row.module).open_session)
    assert msgspec.structs.asdict(row)["extra"]
    assert row.likes


def test_what_runs_on_a_gpu_is_known() -> None:
    """Energy and the times of graphs are measured otherwise there."""
    assert {name for name in BACKENDS if uses_gpu(name)} == {
        "tensorrt",
        "tensorrt-rtx",
        "ort-cuda",
        "ort-trt",
        "ort-rtx",
    }
    assert uses_gpu("onnxruntime,projector=tensorrt")
    assert not uses_gpu("onnxruntime,projector=openvino")


@pytest.mark.parametrize("driver", [True, False])
def test_a_gpu_needs_its_driver(monkeypatch: pytest.MonkeyPatch, driver: bool) -> None:
    """A GPU build of ONNX Runtime on a machine without one is not measured, nor an engine loaded."""
    monkeypatch.setattr(sessions, "nvidia_driver", lambda: driver)
    assert {name for name, row in BACKENDS.items() if row.has_device()} == (
        set(BACKENDS) if driver else {"onnxruntime", "openvino"}
    )
