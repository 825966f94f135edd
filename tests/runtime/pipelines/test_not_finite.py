"""Weights that are no numbers: what is said follows from the precision, for classifiers, generators and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.manifest import MatchingSpec
from tests.runtime.pipelines.conftest import SIZE, GraphMaker
from tests.runtime.pipelines.matching_toy import write_matching
from tests.runtime.pipelines.wordless_toys import write_captioner, write_classifier

DAMAGED = r"fp32, which hardly overflows: the checkpoint's weights are damaged .* Check the checkpoint"
OVERFLOWED = r"Something overflowed in this precision \(int8\)\. Use another precision"


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys are made with weights that are NaN."""
    monkeypatch.setattr(GraphMaker, "weight", lambda self, *shape: self.constant(np.full(shape, np.nan), "float32"))


def with_int8(path: Path) -> Path:
    """A variant of the same numbers that is called int8."""
    bundle = Bundle.open(path)
    fp32 = bundle.variant("fp32")
    with BundleWriter.extend(bundle) as writer:
        other = msgspec.structs.replace(fp32, precision="int8", numerics="u8-fp32")
        writer.finish(msgspec.structs.replace(bundle.manifest, variants={"fp32": fp32, "int8": other}))
    return path


def clip(path: Path) -> Path:
    matching = MatchingSpec(scale=4, bias=0, activation="softmax")
    return write_matching(path, {"image_encoder": {}, "text_encoder": {}}, matching)


@pytest.mark.parametrize(("precision", "said"), [("fp32", DAMAGED), ("int8", OVERFLOWED)])
@pytest.mark.parametrize(
    ("write", "what"), [(write_classifier, "logits"), (write_captioner, "logits"), (clip, "embeddings")]
)
def test_what_is_to_blame_depends_on_the_precision(
    tmp_path: Path,
    pictures: list[np.ndarray],
    write: Callable[[Path], Path],
    what: str,
    precision: str,
    said: str,
) -> None:
    path = with_int8(write(tmp_path / "toy"))
    with Pipeline.load(path, precision=precision, backend="onnxruntime") as pipeline:
        with pytest.raises(CheckFailed, match=f"gave {what} that are not finite numbers. .*{said}"):
            pipeline.answer(pictures[0], "the ball")
        with pytest.raises(CheckFailed, match=said):
            _ = pipeline.stream(pictures[0], "the ball").answer
        with pytest.raises(CheckFailed, match=said):
            pipeline.warm_up()


def test_embeddings_to_search_with_are_numbers(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    with Pipeline.load(clip(tmp_path / "toy"), backend="onnxruntime") as pipeline:
        with pytest.raises(CheckFailed, match=DAMAGED):
            pipeline.embed_images(pictures)
        with pytest.raises(CheckFailed, match=DAMAGED):
            pipeline.embed_texts(["the ball"])


def test_features_are_numbers(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    with (
        Pipeline.load(write_encoder(tmp_path / "toy"), backend="onnxruntime") as pipeline,
        pytest.raises(CheckFailed, match=f"gave features that are not finite numbers. .*{DAMAGED}"),
    ):
        pipeline.features(pictures[0])


def write_encoder(path: Path) -> Path:
    """A toy that gives a picture's features."""
    bundle = Bundle.open(write_classifier(path))
    make = GraphMaker("encoder", {"pixel_values": ("float32", ["image", 3, SIZE, SIZE])}, 3)
    flat = make.op("Reshape", "pixel_values", make.constant([0, 3, SIZE * SIZE]))
    make.op("MatMul", flat, make.weight(SIZE * SIZE, 4), output="last_hidden_state")
    with BundleWriter.extend(bundle) as writer:
        graph = make.save(writer, "features", {"last_hidden_state": ("float32", ["image", 3, 4])})
        variant = msgspec.structs.replace(bundle.variant("fp32"), graphs={"encoder": graph})
        manifest = msgspec.structs.replace(bundle.manifest, pipeline="features", labels=[], variants={"fp32": variant})
        writer.finish(manifest)
    return path
