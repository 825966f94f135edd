"""`edgevqa bundle` and `edgevqa inspect`: results, messages and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle

Invoke = Callable[..., tuple[int, str, str]]
WEIGHTS = "graphs/fp32/weights.data"


def test_verify(invoke: Invoke, fake_bundle: Bundle) -> None:
    code, out, err = invoke("bundle", "verify", fake_bundle.root)
    assert (code, err) == (0, "")
    assert "All 8 files are as the manifest says." in out
    assert all(spec.path in out for spec in fake_bundle.files())


def test_verify_names_what_failed(invoke: Invoke, fake_bundle: Bundle) -> None:
    (fake_bundle.root / WEIGHTS).write_bytes(bytes(3000))
    (fake_bundle.root / "tokenizer.json").unlink()
    code, out, err = invoke("bundle", "verify", fake_bundle.root)
    assert code == 1
    assert "changed or damaged" in out
    assert f"error: {fake_bundle.root}: 2 of 8 files failed: tokenizer.json, {WEIGHTS}" in err
    code, out, err = invoke("bundle", "verify", fake_bundle.root, "--json")
    assert code == 1
    result = json.loads(out)
    assert result["passed"] is False
    assert {row["path"]: row["status"] for row in result["files"] if row["status"] != "ok"} == {
        WEIGHTS: "hash",
        "tokenizer.json": "missing",
    }


def test_verify_notices_a_changed_manifest(invoke: Invoke, fake_bundle: Bundle) -> None:
    path = fake_bundle.root / "manifest.json"
    path.write_text(path.read_text().replace("ckpt.pth", "ckpt.pt_"))
    code, _, err = invoke("bundle", "verify", fake_bundle.root)
    assert code == 1
    assert "1 of 8 files failed: manifest.json" in err


def test_pack_and_unpack(invoke: Invoke, fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke("bundle", "pack", "bundle")
    assert code == 0
    assert out.startswith("bundle.edgevqa.tar: ")
    assert "edgevqa bundle unpack bundle.edgevqa.tar" in err
    code, out, err = invoke("bundle", "unpack", "bundle.edgevqa.tar")
    assert (code, out) == (2, "")
    assert err == "error: bundle exists. Give another output folder, or replace it with --overwrite.\n"
    code, out, _ = invoke("bundle", "unpack", "bundle.edgevqa.tar", "-o", "copy", "--json")
    assert (code, json.loads(out)) == (0, {"bundle": "copy", "files": 7})
    assert invoke("bundle", "unpack", "bundle.edgevqa.tar", "--overwrite")[0] == 0
    assert invoke("bundle", "pack", "copy", "-o", "bundle.edgevqa.tar")[0] == 2
    code, out, _ = invoke("bundle", "pack", "copy", "-o", "copy.tar", "--json")
    assert json.loads(out) == {
        "file": "copy.tar",
        "size_bytes": Path("copy.tar").stat().st_size,
        "left_out": [],
        "stale": [],
    }
    assert Path("copy.tar").read_bytes() == Path("bundle.edgevqa.tar").read_bytes()


def test_a_damaged_archive_leaves_nothing(
    invoke: Invoke, fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("bundle", "pack", fake_bundle.root, "-o", "x.tar")
    Path("x.tar").write_bytes(Path("x.tar").read_bytes()[:9000])
    code, out, err = invoke("bundle", "unpack", "x.tar", "-o", "out")
    assert (code, out) == (2, "")
    assert "cut off" in err
    assert "copy it again" in err.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "x.tar"]


@pytest.mark.parametrize("command", [("inspect",), ("bundle", "verify"), ("bundle", "pack"), ("bundle", "unpack")])
def test_what_is_not_there(invoke: Invoke, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, out, err = invoke(*command, tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}/nowhere does not exist; expected ")


def test_inspect(invoke: Invoke, fake_bundle: Bundle) -> None:
    code, out, err = invoke("inspect", fake_bundle.root)
    assert (code, err) == (0, "")
    for text in (
        "qavit_t5 (visual-question-answering, pipeline encoder_decoder)",
        "ckpt.pth (official), 4,160 parameters",
        "torch 2.13.0",
        "fp32",
        "past_key.0..2 float32 (batch, 4, capacity, 8)",
        "image_embeds float32 (batch, 17, 32)",
        "2.40e-06",
        "identical: 4 of 4",
        "3.0 kB",
    ):
        assert text in out, text


def test_inspect_json_is_the_manifest(invoke: Invoke, fake_bundle: Bundle) -> None:
    code, out, _ = invoke("inspect", fake_bundle.root, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["manifest"] == json.loads((fake_bundle.root / "manifest.json").read_bytes())
    assert result["size_bytes"] == sum(spec.size_bytes for spec in fake_bundle.files())


def test_inspect_refuses_a_changed_manifest(invoke: Invoke, fake_bundle: Bundle) -> None:
    with (fake_bundle.root / "manifest.json").open("a") as stream:
        stream.write(" ")
    code, out, err = invoke("inspect", fake_bundle.root)
    assert (code, out) == (2, "")
    assert "changed after the export, or damaged" in err
