"""`edgevqa quantize`: its tables and JSON, and what users get wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle
from tests.runtime.pipelines.wordless_toys import write_classifier

Invoke = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int3"), "--precision int3: expected fp16, bf16, int8, fp8, mixed."),
        (("--precision", "int8", "--target", "cpu,toaster"), "There is no target 'toaster'"),
        (("--precision", "fp8", "--target", "cpu"), "Target 'cpu' cannot run fp8"),
        (("--precision", "mixed"), "--precision mixed needs --data"),
        (("--precision", "int8", "--method", "median"), "--method median: expected auto, max"),
        (
            ("--precision", "int8", "--decoder", "int2"),
            "--decoder int2: expected int8, weight-int8, weight-int4, high.",
        ),
        (("--precision", "mixed", "--data", "scenes:1:90", "--time-limit", "soon"), "expected for example 90s, 30m"),
        (("--precision", "int8", "--samples", "0"), "--samples 0: expected at least 1."),
        (("--precision", "int8", "--max-drop", "0.5"), "Say --precision mixed, or leave --max-drop out"),
        (("--precision", "int8", "--time-limit", "5m"), "Say --precision mixed, or leave --time-limit out"),
        (("--precision", "int8"), "has no calibration, which --precision int8 needs. Make one: edgevqa calibrate"),
        (("--precision", "int8", "--data", "nowhere"), "The data set 'nowhere' is unknown"),
    ],
)
def test_mistakes(invoke: Invoke, fake_bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    before = (fake_bundle.root / "manifest.json").read_bytes()
    code, out, err = invoke("quantize", fake_bundle.root, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert (fake_bundle.root / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--decoder", "--encoder"])
def test_modes_of_graphs_that_the_model_lacks_are_refused(invoke: Invoke, tmp_path: Path, option: str) -> None:
    bundle = write_classifier(tmp_path / "toy")
    code, out, err = invoke("quantize", bundle, "--precision", "int8", option, "weight-int4", "--data", "scenes:7:90")
    assert (code, out) == (2, "")
    assert f"{option} weight-int4: this model (toy) has no graph" in err
    assert f"Its graphs are classifier. Leave {option} out." in err
    assert list(Bundle.open(bundle).manifest.variants) == ["fp32"]


def test_a_missing_bundle(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("quantize", tmp_path / "none", "--precision", "int8")
    assert code == 2
    assert "none" in err


@pytest.mark.slow
def test_from_an_exported_bundle_to_int8(invoke: Invoke, reference_bundle: Path, tmp_path: Path) -> None:
    """No calibration, no target: calibrated first, and written for what is installed."""
    path = tmp_path / "a bundle"
    shutil.copytree(reference_bundle, path)
    arguments = ("--data", "scenes:3:120", "--samples", "24", "--method", "max", "--threads", "1")
    code, out, err = invoke("quantize", path, "--precision", "int8", "--target", "cpu", *arguments)
    assert code == 0, err
    assert "had no calibration: it was calibrated on a part of scenes:3:120 first" in err
    assert "int8-u8-fp32 (u8-fp32)" in out
    assert "language_decoder/language_model.lm_head" in out
    assert "vocabulary head" in out
    assert " of 24 answers are fp32's; " in out
    assert "MB, 0.3" in out
    assert f"edgevqa ask '{path}' PICTURE" in err
    code, out, err = invoke("quantize", path, "--precision", "fp16", "--target", "cpu", "--json", *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["variants"][0]["variant"] == "fp16"
    assert 0.4 < found["variants"][0]["size_ratio"] < 0.6
    assert not found["calibrated"]
    code, out, _ = invoke("quantize", path, "--precision", "int8", "--target", "rtx,cpu", "--json", "--method", "max")
    assert code == 0
    found = json.loads(out)
    assert [variant["numerics"] for variant in found["variants"]] == ["s8-fp16", "u8-fp32"]
    assert found["warnings"] == ["No --data was given: only local errors were measured, no answers."]
    row = found["variants"][0]["report"]["layers"][0]
    assert {"name", "graph", "parameters", "macs", "method", "alpha", "local_error", "high", "reason"} == set(row)
    usual = ("--precision", "int8", "--target", "cpu", "--method", "max")
    code, out, err = invoke("quantize", path, *usual, "--decoder", "weight-int4")
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.split()[:1] == ["language_decoder"])
    assert row.split()[1] == "weight-int4"
    assert 'PICTURE "QUESTION" --precision int8-u8-fp32-decoder-w4' in err
    variants = Bundle.open(path).manifest.variants
    assert list(variants) == ["fp32", "int8-u8-fp32", "fp16", "int8-s8-fp16", "int8-u8-fp32-decoder-w4"]
    code, out, _ = invoke("inspect", path, "--json")
    assert code == 0
    told = json.loads(out)["variants"]
    assert {name: row["weight_only"] for name, row in told.items() if row["weight_only"]} == {
        "int8-u8-fp32-decoder-w4": {"language_decoder": "int4"}
    }
    assert told["int8-u8-fp32"]["size_bytes"] == variants["int8-u8-fp32"].size_bytes
