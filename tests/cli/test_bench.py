"""`edgevqa bench`: graphs or layers, as tables and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.runtime.sessions import BACKENDS

Invoke = Callable[..., tuple[int, str, str]]
INSTALLED = [name for name, row in BACKENDS.items() if row.flavour is None and row.installed()]


def test_latency(invoke: Invoke, reference_bundle: Path) -> None:
    code, out, err = invoke("bench", reference_bundle, "--runs", 1, "--warm-up", 0, "--backend", "onnxruntime")
    assert (code, err) == (0, "")
    for text in ("first answer", "next answer", "language_decoder (a token)", "fp32 on onnxruntime, 1 runs after 0"):
        assert text in out


@pytest.mark.parametrize("backend", INSTALLED)
def test_profile(invoke: Invoke, reference_bundle: Path, backend: str) -> None:
    asked = ("bench", reference_bundle, "--profile", "--runs", 2, "--warm-up", 1, "--backend", backend)
    code, out, err = invoke(*asked)
    assert (code, err) == (0, "")
    assert "ms an answer" in out
    assert f"fp32 on {backend}: " in out
    assert "more with" in out
    assert "local error" not in out  # fp32 has no report
    code, out, err = invoke(*asked, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert {"layer", "kinds", "time_ms", "share", "runs", "local_error", "kept_high"} == set(report["layers"][0])
    layers = {row["layer"] for row in report["layers"]}
    assert "vision_fusion/vision.layers.3.mlp.fc1" in layers
    assert report["graph_ms"].keys() >= {"vision_trunk", "language_decoder"}


def test_auto_measures_once_and_says_so_on_standard_error(
    invoke: Invoke, reference_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(INSTALLED) < 2:
        pytest.skip("there is one backend alone")
    monkeypatch.delenv("EDGEVQA_BACKEND")
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path))
    picture = Path(__file__).parents[2] / "export" / "pictures" / "scene-4.png"
    question = "how many red shapes are there?"
    code, out, err = invoke("ask", reference_bundle, picture, question, "--json")
    assert code == 0
    assert json.loads(out)["answers"][0]["answer"] == "2"
    assert f"note: measuring {' and '.join(INSTALLED)} on this bundle, once" in err
    copy = shutil.copytree(reference_bundle, tmp_path / "elsewhere")
    assert invoke("ask", copy, picture, question)[2] == ""


def test_a_wrong_number_of_runs(invoke: Invoke, reference_bundle: Path) -> None:
    for more in ((), ("--profile",)):
        code, out, err = invoke("bench", reference_bundle, "--runs", 0, *more)
        assert (code, out) == (2, "")
        assert "at least 1" in err
