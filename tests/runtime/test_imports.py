"""What importing the runtime costs: nothing heavy, and no backend before a bundle is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgevqa.runtime

NOT_BEFORE_LOADING = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "rich",
    "typer",
    "safetensors",
)


def imported_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_room_needs_neither_numpy_nor_pillow() -> None:
    assert not imported_by("import edgevqa.runtime") & {"numpy", "PIL", "tokenizers", *NOT_BEFORE_LOADING}


def test_importing_the_pipeline_needs_no_backend() -> None:
    found = imported_by("from edgevqa.runtime import Pipeline")
    assert not found & set(NOT_BEFORE_LOADING)
    assert {"numpy", "PIL", "tokenizers"} <= found


@pytest.mark.parametrize("name", edgevqa.runtime.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(edgevqa.runtime, name).__name__ == name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Oracle'"):
        _ = edgevqa.runtime.Oracle


def test_onnxruntime_keeps_no_record_of_the_user(tmp_path: Path) -> None:
    """Its builds queue usage data in the cache folder, with a device id, unless they are told not to."""
    code = "import edgevqa.runtime, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()]


BUILDING = sorted(
    file.stem
    for file in (Path(edgevqa.runtime.__file__).parents[1] / "export" / "engine").glob("*.py")
    if file.stem != "__init__"
)


def test_building_engines_imports_nothing_heavy() -> None:
    """A board has the base install and its TensorRT, and imports that when it builds."""
    rooms = ", ".join(f"edgevqa.export.engine.{name}" for name in BUILDING)
    heavy = {*NOT_BEFORE_LOADING, "tensorrt_rtx", "cuda", "onnx_ir", "onnxscript"}
    assert "child" in BUILDING
    assert not imported_by(f"import {rooms}") & heavy
    assert not imported_by("import edgevqa.cli.build") & (heavy - {"typer", "rich"})


def test_the_building_process_needs_no_numpy() -> None:
    """It holds a graph three times as it is: what else it imports is memory that the board lacks."""
    assert not imported_by("import edgevqa.export.engine.child") & {"numpy", "PIL", "tokenizers", *NOT_BEFORE_LOADING}
