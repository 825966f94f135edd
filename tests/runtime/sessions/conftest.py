"""The toy model of tests/runtime/pipelines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("toy_model", Path(__file__).parents[1] / "pipelines" / "conftest.py")
if _SPEC is None or _SPEC.loader is None:
    raise ImportError("tests/runtime/pipelines/conftest.py is missing")
_TOY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOY)

toy_bundle = _TOY.toy_bundle
make_toy = _TOY.make_toy
