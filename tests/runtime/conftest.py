"""Small bundles with random bytes for graphs: enough for everything that is about files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevqa.runtime import hashing
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import (
    FileSpec,
    GraphSpec,
    Manifest,
    ParityRow,
    ParitySpec,
    SourceSpec,
    TensorSpec,
    TextSpec,
    VariantSpec,
)


def random_bytes(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def graph(file: FileSpec) -> GraphSpec:
    numbered = [TensorSpec(name=f"past_key.{n}", dtype="float32", shape=["batch", 4, "capacity", 8]) for n in range(3)]
    return GraphSpec(
        file=file,
        opset=19,
        ir_version=10,
        inputs=[TensorSpec(name="image_states", dtype="float32", shape=["batch", 17, 64]), *numbered],
        outputs=[TensorSpec(name="image_embeds", dtype="float32", shape=["batch", 17, 32])],
        parameters=2080,
        nodes={"MatMul": 2, "Add": 1},
    )


def variant(writer: BundleWriter, name: str, seed: int, size: int) -> VariantSpec:
    names = ("projector", "vision_trunk")
    files = {
        key: writer.add_bytes(random_bytes(seed + n, 700), f"graphs/{name}/{key}.onnx") for n, key in enumerate(names)
    }
    return VariantSpec(
        precision="fp32" if name == "fp32" else "fp16",
        numerics="fp32" if name == "fp32" else "fp16",
        weights=writer.add_bytes(random_bytes(seed + 9, size), f"graphs/{name}/weights.data"),
        graphs={key: graph(file) for key, file in files.items()},
    )


def manifest(variants: dict[str, VariantSpec], tokenizer: FileSpec) -> Manifest:
    row = ParityRow(
        graph="projector",
        output="image_embeds",
        samples="random",
        max_abs_diff=2.4e-6,
        cosine=0.9999999,
        tolerance=1e-4,
        passed=True,
    )
    return Manifest(
        schema_version=1,
        edgevqa_version="0.1.0",
        created="2026-11-21T05:00:00Z",
        family="qavit_t5",
        task="visual-question-answering",
        pipeline="encoder_decoder",
        target="cpu",
        image=None,
        text=TextSpec(
            tokenizer=tokenizer,
            cleaning="none",
            max_tokens=30,
            pad_token_id=0,
            eos_token_id=1,
            special_token_ids=[0, 1],
        ),
        generation=None,
        variants=variants,
        source=SourceSpec(kind="official", id="ckpt.pth", revision=None, sha256="0" * 64, parameters=4160),
        model={},
        parity={"fp32": ParitySpec(backend="onnxruntime", rows=[row], answers_compared=4, answers_identical=4)},
        tools={"torch": "2.13.0"},
    )


def write_fake(writer: BundleWriter, weights_bytes: int) -> Manifest:
    """Fill an entered writer with two variants and a tokenizer; give the manifest for `finish`."""
    variants = {name: variant(writer, name, seed, weights_bytes) for seed, name in ((1, "fp32"), (50, "fp16"))}
    return manifest(variants, writer.add_bytes(b'{"model": {}}\n', "tokenizer.json"))


@pytest.fixture
def fill_writer() -> Callable[[BundleWriter, int], Manifest]:
    """`write_fake`, for tests that drive a writer themselves."""
    return write_fake


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Bundle:
    """A whole bundle at `tmp_path/bundle`: fp32 and fp16, 3,000 bytes of weights each."""
    with BundleWriter(tmp_path / "bundle") as writer:
        return writer.finish(write_fake(writer, 3000))


@pytest.fixture
def memory_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hash memory that takes files as soon as they are written."""
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "SETTLE_NS", 0)
    return tmp_path / "cache" / "hashes"


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes, hidden ones too."""
    return tree
