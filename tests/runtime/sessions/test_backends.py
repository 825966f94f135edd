"""The table of backends."""

from __future__ import annotations

import importlib

import msgspec
import pytest

from edgevqa.runtime import sessions
from edgevqa.runtime.errors import ConfigError, MissingExtraError
from edgevqa.runtime.sessions import BACKENDS, Backend, choose_backend

ABSENT = Backend(name="absent", module="edgevqa.runtime.sessions.ort", package="package_that_is_absent", extra="dream")


def test_auto_takes_the_first_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {"absent": ABSENT, **BACKENDS})
    assert choose_backend("auto").name == "onnxruntime"


def test_a_backend_that_is_not_installed_is_answered_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {"absent": ABSENT})
    for name in ("auto", "absent"):
        with pytest.raises(MissingExtraError, match=r"pip install 'edgevqa\[dream\]'"):
            choose_backend(name)


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'warp'; expected auto, onnxruntime"):
        choose_backend("warp")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_row_names_a_module_that_opens_sessions(name: str) -> None:
    row = BACKENDS[name]
    assert row.name == name
    assert callable(importlib.import_module(row.module).open_session)
    assert msgspec.structs.asdict(row)["extra"]
