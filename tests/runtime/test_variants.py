"""Which variant a precision means on a backend."""

from __future__ import annotations

import msgspec
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.graphs import choose_variant
from edgevqa.runtime.manifest import Manifest, Numerics, Precision, VariantSpec


def with_variants(bundle: Bundle, *rows: tuple[str, Precision, Numerics]) -> Manifest:
    variants = {
        name: VariantSpec(precision=precision, numerics=numerics, weights=None, graphs={})
        for name, precision, numerics in rows
    }
    return msgspec.structs.replace(bundle.manifest, variants=variants)


@pytest.fixture
def manifest(fake_bundle: Bundle) -> Manifest:
    return with_variants(
        fake_bundle,
        ("fp16", "fp16", "fp16"),
        ("int8-s8-fp16", "int8", "s8-fp16"),
        ("int8-s8-fp32", "int8", "s8-fp32"),
        ("int8-u8-fp32", "int8", "u8-fp32"),
        ("mixed-s8-fp16", "mixed", "s8-fp16"),
        ("fp32", "fp32", "fp32"),
    )


@pytest.mark.parametrize(
    ("precision", "backend", "variant"),
    [
        ("int8", "onnxruntime", "int8-u8-fp32"),
        ("int8", "openvino", "int8-s8-fp32"),
        ("int8", "a backend of another version", "int8-s8-fp16"),
        ("mixed", "onnxruntime", "mixed-s8-fp16"),
        ("mixed", "openvino", "mixed-s8-fp16"),
        ("fp16", "openvino", "fp16"),
        ("int8-s8-fp16", "openvino", "int8-s8-fp16"),
        (None, "onnxruntime", "fp32"),
        ("fp32", "openvino", "fp32"),
    ],
)
def test_the_backend_likes_one_best(manifest: Manifest, precision: str | None, backend: str, variant: str) -> None:
    assert choose_variant(manifest, precision, backend) == variant


def test_an_exact_name_wins_over_a_precision(fake_bundle: Bundle) -> None:
    manifest = with_variants(fake_bundle, ("other", "int8", "u8-fp32"), ("int8", "int8", "s8-fp16"))
    assert choose_variant(manifest, "int8", "onnxruntime") == "int8"
    assert choose_variant(manifest, None, "onnxruntime") == "other"


def test_what_the_backend_does_not_list_comes_last(fake_bundle: Bundle) -> None:
    manifest = with_variants(fake_bundle, ("a", "int8", "fp8-fp16"), ("b", "int8", "s8-fp16"))
    assert choose_variant(manifest, "int8", "openvino") == "b"
    assert choose_variant(manifest, "int8", "onnxruntime") == "a"


def test_a_precision_that_is_not_there(manifest: Manifest, fake_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no variant 'bf16'; it has fp16, int8-s8-fp16"):
        choose_variant(manifest, "bf16", "onnxruntime")
    with pytest.raises(ConfigError, match="no variant, so there is nothing to run"):
        choose_variant(with_variants(fake_bundle), None, "onnxruntime")
