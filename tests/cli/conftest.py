"""The small bundles of tests/runtime, and a way to run the command line in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.cli.main import run

_SPEC = importlib.util.spec_from_file_location(
    "runtime_fixtures", Path(__file__).parents[1] / "runtime" / "conftest.py"
)
if _SPEC is None or _SPEC.loader is None:
    raise ImportError("tests/runtime/conftest.py is missing")
_FIXTURES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FIXTURES)

fake_bundle = _FIXTURES.fake_bundle
fill_writer = _FIXTURES.fill_writer
snapshot = _FIXTURES.snapshot

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run `edgevqa ARGS...`; gives exit code, standard output and standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
