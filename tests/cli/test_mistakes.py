"""Everything that goes wrong: one clear message, the documented exit code, no traceback, nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

Invoke = Callable[..., tuple[int, str, str]]
Made = dict[str, Path]


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def made(tmp_path: Path, golden_bundle: Callable[[str], Path], golden_root: Path) -> Made:
    """Pictures, bundles and checkpoints, good and bad; `{name}` in a case stands for one of them."""
    good = tmp_path / "good.png"
    Image.new("RGB", (80, 60), (200, 30, 30)).save(good)
    data = good.read_bytes()
    files = {
        "truncated": data[: len(data) // 2],
        "text": b"this is no picture",
        "empty": b"",
        "zero": png(0, 0),
        "bomb": png(60_000, 60_000),
    }
    made = {"good": good, "bundle": golden_bundle("late"), "tmp": tmp_path, "golden": golden_root}
    for name, content in files.items():
        made[name] = tmp_path / f"{name}.png"
        made[name].write_bytes(content)
    made["npz"] = tmp_path / "arrays.npz"
    np.savez(made["npz"], image_states=np.zeros((1, 17, 64), np.float32))
    for name, size in (("pixel", (1, 1)), ("thin", (20_000, 1))):
        made[name] = tmp_path / f"{name}.png"
        Image.new("RGB", size, (1, 2, 3)).save(made[name])
    return made


@pytest.fixture
def broken(made: Made) -> Callable[[str, Callable[[Path], object]], Path]:
    """A copy of the bundle with one thing changed."""

    def change(name: str, breaker: Callable[[Path], object]) -> Path:
        copy = made["tmp"] / f"{name}.bundle"
        shutil.copytree(made["bundle"], copy)
        breaker(copy)
        return copy

    return change


LONG = " ".join(["word"] * 10_000)

ASKING = [
    # what is wrong, arguments, exit code, words of the message
    ("missing file", ["ask", "{bundle}", "{tmp}/absent.png", "what?"], 2, ["absent.png", "exist"]),
    ("folder for a picture", ["ask", "{bundle}", "{tmp}", "what?"], 2, ["folder"]),
    ("truncated picture", ["ask", "{bundle}", "{truncated}", "what?"], 2, ["truncated.png"]),
    ("text for a picture", ["ask", "{bundle}", "{text}", "what?"], 2, ["text.png"]),
    ("empty picture", ["ask", "{bundle}", "{empty}", "what?"], 2, ["empty"]),
    ("picture of no pixels", ["ask", "{bundle}", "{zero}", "what?"], 2, ["zero.png"]),
    ("decompression bomb", ["ask", "{bundle}", "{bomb}", "what?"], 2, ["bomb.png", "pixels"]),
    ("thin strip", ["ask", "{bundle}", "{thin}", "what?"], 2, ["20000 x 1", "too thin"]),
    ("one pixel", ["ask", "{bundle}", "{pixel}", "what is this?"], 0, []),
    ("empty question", ["ask", "{bundle}", "{good}", ""], 2, ["question", "empty"]),
    ("question of marks", ["ask", "{bundle}", "{good}", "!!!"], 2, ["empty", "cleaning"]),
    ("10,000 words", ["ask", "{bundle}", "{good}", LONG], 0, ["cut"]),
    ("not English", ["ask", "{bundle}", "{good}", "was ist das für ein Ding?"], 0, []),
    ("another script", ["ask", "{bundle}", "{good}", "这是什么"], 2, ["vocabulary"]),
    ("no bundle", ["ask", "{tmp}/absent", "{good}", "what?"], 2, ["absent"]),
    ("picture for a bundle", ["ask", "{good}", "{good}", "what?"], 2, ["good.png"]),
    ("precision it lacks", ["ask", "{bundle}", "{good}", "what?", "--precision", "int8"], 2, ["int8", "fp32"]),
    ("unknown backend", ["ask", "{bundle}", "{good}", "what?", "--backend", "abacus"], 2, ["abacus", "onnxruntime"]),
    ("no tokens", ["ask", "{bundle}", "{good}", "what?", "--max-new-tokens", "0"], 2, ["max_new_tokens"]),
    ("empty choices", ["ask", "{bundle}", "{good}", "what?", "--choices", ""], 2, ["choice"]),
    ("unknown option", ["ask", "{bundle}", "{good}", "what?", "--colour"], 2, ["--colour"]),
    ("unknown command", ["answer"], 2, ["answer"]),
    ("unknown graph", ["graph", "run", "{bundle}", "eye", "--inputs", "{npz}", "--outputs", "{tmp}/o.npz"], 2, ["eye"]),
    (
        "arrays that are none",
        ["graph", "run", "{bundle}", "projector", "--inputs", "{text}", "--outputs", "{tmp}/o.npz"],
        2,
        ["text.png"],
    ),
]  # fmt: skip

EXPORT_LATE = ["export", "{golden}/late/ckpt.pth"]

EXPORTING = [
    ("unknown target", ["export", "reference", "-o", "{tmp}/out", "--target", "toaster"], 2, ["toaster", "cpu"]),
    ("missing folder", ["export", "./absent", "-o", "{tmp}/out"], 2, ["absent"]),
    ("missing checkpoint", ["export", "{tmp}/absent.pth", "--config", "x.yaml", "-o", "{tmp}/out"], 2, ["absent.pth"]),
    ("checkpoint without yaml", ["export", "{golden}/late/ckpt.pth", "-o", "{tmp}/out"], 2, ["--config"]),
    (
        "missing yaml",
        ["export", "{golden}/late/ckpt.pth", "--config", "{tmp}/absent.yaml", "-o", "{tmp}/out"],
        2,
        ["absent.yaml"],
    ),
    (
        "picture for a checkpoint",
        ["export", "{text_pth}", "--config", "{golden}/late/config.yaml", "--root", "{golden}", "-o", "{tmp}/out"],
        2,
        ["text.pth", "checkpoint"],
    ),
    (
        "checkpoint of another architecture",
        ["export", "{other_pth}", "--config", "{golden}/late/config.yaml", "--root", "{golden}", "-o", "{tmp}/out"],
        2,
        ["missing: ", "language_model", "unexpected: ", "layer1.weight"],
    ),
    (
        "yaml of another integration point",
        [*EXPORT_LATE, "--config", "{golden}/sparse/config.yaml", "--root", "{golden}", "-o", "{tmp}/out"],
        2,
        ["missing: ", "vision.layers.0", "unexpected: ", "vision.layers.5"],
    ),
    (
        "unknown key in the yaml",
        ["export", "{golden}/late/ckpt.pth", "--config", "{odd_yaml}", "--root", "{golden}", "-o", "{tmp}/out"],
        2,
        ["lora_rank", "lora_r,"],
    ),
    (
        "wrong root",
        ["export", "{golden}/late/ckpt.pth", "--config", "{golden}/late/config.yaml", "--root", "{tmp}", "-o", "{tmp}/out"],
        3,
        ["pretrained/clip-tiny", "hub"],
    ),
    ("unknown family", ["export", "{foreign}", "-o", "{tmp}/out"], 2, ["bert", "qavit_t5", "CONTRIBUTING.md"]),
    ("hub id without a network", ["export", "no-such-owner/no-such-model", "-o", "{tmp}/out"], 3, ["no-such-model"]),
    ("other precision", ["export", "reference", "-o", "{tmp}/out", "--precision", "int8"], 2, ["int8", "fp32"]),
    ("opset too low", ["export", "reference", "-o", "{tmp}/out", "--opset", "9"], 2, ["--opset 9"]),
    ("output that exists", ["export", "reference", "-o", "{bundle}"], 2, ["--overwrite"]),
    ("output that is a file", ["export", "reference", "-o", "{good}", "--overwrite"], 2, ["good.png"]),
]  # fmt: skip


def prepare(made: Made) -> Made:
    """Checkpoints that only exporting needs."""
    tmp = made["tmp"]
    made["text_pth"], made["other_pth"], made["odd_yaml"] = tmp / "text.pth", tmp / "other.pth", tmp / "odd.yaml"
    made["text_pth"].write_bytes(made["good"].read_bytes())
    torch.save({"model": {"base_model.model.layer1.weight": torch.zeros(2, 2)} | lora(made)}, made["other_pth"])
    made["odd_yaml"].write_text((made["golden"] / "late" / "config.yaml").read_text() + "\nlora_rank: 4\n")
    made["foreign"] = tmp / "foreign"
    made["foreign"].mkdir()
    (made["foreign"] / "config.json").write_text('{"model_type": "bert"}')
    return made


def lora(made: Made) -> dict[str, torch.Tensor]:
    """One adapted weight, so that the yaml's LoRA finds what it needs and the rest is what differs."""
    state = torch.load(made["golden"] / "late" / "ckpt.pth", weights_only=True)["model"]
    stem = "base_model.model.encoder.block.0.layer.0.SelfAttention.q."
    return {key: value for key, value in state.items() if key.startswith(stem)}


def check(invoke: Invoke, made: Made, args: list[str], code: int, said: list[str]) -> None:
    before = sorted(path.name for path in made["tmp"].iterdir())
    found, out, err = invoke(*[arg.format(**made) for arg in args])
    assert found == code, f"{out}\n{err}"
    assert "Traceback" not in out + err
    assert all(word in err for word in said), err
    if code:
        assert out == ""
        assert sorted(path.name for path in made["tmp"].iterdir()) == before  # nothing half-written


@pytest.mark.parametrize(("args", "code", "said"), [row[1:] for row in ASKING], ids=[row[0] for row in ASKING])
def test_asking(invoke: Invoke, made: Made, args: list[str], code: int, said: list[str]) -> None:
    check(invoke, made, args, code, said)


@pytest.mark.parametrize(("args", "code", "said"), [row[1:] for row in EXPORTING], ids=[row[0] for row in EXPORTING])
def test_exporting(invoke: Invoke, made: Made, args: list[str], code: int, said: list[str]) -> None:
    check(invoke, prepare(made), args, code, said)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def edit(old: str, new: str) -> Callable[[Path], object]:
    """Change the manifest, its hash included: what is wrong is what it says."""

    def change(bundle: Path) -> None:
        import hashlib

        path = bundle / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (bundle / "manifest.sha256").write_text(f"{digest}  manifest.json\n")

    return change


@pytest.mark.parametrize(
    ("breaker", "said"),
    [
        (lambda b: flip(b / "graphs/fp32/vision_trunk.onnx"), ["vision_trunk.onnx", "SHA-256"]),
        (lambda b: flip(b / "graphs/fp32/weights.data"), ["weights.data", "SHA-256"]),
        (lambda b: flip(b / "tokenizer.json"), ["tokenizer.json"]),
        (lambda b: (b / "graphs/fp32/projector.onnx").unlink(), ["projector.onnx"]),
        (lambda b: (b / "manifest.json").unlink(), ["manifest.json"]),
        (lambda b: (b / "manifest.json").write_text("{"), ["manifest.json"]),
        (edit('"schema_version": 1', '"schema_version": 2'), ["version 2", "Upgrade edgevqa"]),
        (edit('"graphs/fp32/projector.onnx"', '"../projector.onnx"'), ["../projector.onnx"]),
        (edit('"family"', '"familiar"'), ["familiar"]),
    ],
    ids=["graph", "weights", "tokenizer", "no-graph", "no-manifest", "cut-manifest", "newer", "outside", "unknown-key"],
)
def test_bundles_that_are_broken(
    invoke: Invoke,
    made: Made,
    broken: Callable[[str, Callable[[Path], object]], Path],
    breaker: Callable[[Path], object],
    said: list[str],
) -> None:
    bundle = broken("changed", breaker)
    code, out, err = invoke("ask", bundle, made["good"], "what is this?")
    assert (code, out) == (2, ""), err
    assert all(word in err for word in said), err


def test_a_file_that_changes_after_it_was_checked_is_noticed(
    invoke: Invoke, made: Made, broken: Callable[[str, Callable[[Path], object]], Path]
) -> None:
    bundle = broken("later", lambda b: None)
    assert invoke("ask", bundle, made["good"], "what is this?")[0] == 0
    flip(bundle / "graphs/fp32/weights.data")
    code, _, err = invoke("ask", bundle, made["good"], "what is this?")
    assert code == 2
    assert "weights.data" in err


def test_a_missing_package_is_answered_with_its_pip_command(
    invoke: Invoke, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = invoke("export", "reference", "-o", made["tmp"] / "out")
    assert (code, out) == (3, "")
    assert "pip install 'edgevqa[export]'" in err


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from edgevqa.cli.main import main; main()", *map(str, args)]


def test_ctrl_c_while_exporting_leaves_nothing(
    tmp_path: Path, official_checkpoints: ModuleType, golden_root: Path
) -> None:
    tokenizer = golden_root / "pretrained" / "t5-tiny" / "tokenizer.json"
    checkpoint = official_checkpoints.write(tmp_path / "official", tokenizer=tokenizer)
    folder = checkpoint.parent
    args = ("export", checkpoint, "--config", folder / "config.yaml", "--root", folder, "-o", tmp_path / "out")
    with subprocess.Popen(command(*args), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trace vision_fusion" in line:
                break
        assert len(list(tmp_path.iterdir())) == 2  # something is being written
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


def test_a_full_disk_while_exporting_leaves_nothing(
    tmp_path: Path, official_checkpoints: ModuleType, golden_root: Path
) -> None:
    """A limit on file sizes stands in for the disk: writing the weights fails in the middle."""
    tokenizer = golden_root / "pretrained" / "t5-tiny" / "tokenizer.json"
    checkpoint = official_checkpoints.write(tmp_path / "official", tokenizer=tokenizer)
    folder = checkpoint.parent
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    args = ["export", str(checkpoint), "--config", str(folder / "config.yaml"), "--root", str(folder)]
    code = limit + "from edgevqa.cli.main import main; main()"
    run = [sys.executable, "-c", code, *args, "-o", str(tmp_path / "out"), "--no-verify"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=250, env={**os.environ}, check=False)
    assert done.returncode == 3, done.stderr  # room on the disk is something that this machine lacks
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["official"]
