"""The family `cross_attention`, on a small random model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError
from tests.families.test_dual_encoder import DualEncoderContract
from tests.families.tiny.dual_encoders import dual_encoder


class TestCrossAttention(DualEncoderContract):
    family = "cross_attention"
    mechanism = "cross_attention"
    model_type = "cross_attention"
    quantized = True

    def test_the_projection_runs_once_a_picture(self, bundle_path: Path) -> None:
        """`vision` gives states in the block's width, normalised; the matcher holds none of the projector."""
        graphs = Bundle.open(bundle_path).manifest.variants["fp32"].graphs
        assert graphs["vision"].outputs[0].shape[-1] == 32
        towers = 2 * 2 + 1  # ViT: two norms a layer and one at the end
        assert graphs["vision"].nodes["LayerNormalization"] == towers + 1


def test_the_model_type_stands_for_its_mechanism() -> None:
    with pytest.raises(ConfigError, match="mechanism 'joint'; expected 'cross_attention'"):
        dual_encoder("joint", model_type="cross_attention")
