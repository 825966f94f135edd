"""A vision and a language model with a visual projection and two-way cross-attention between them, for matching.

The block is the fusion mechanism `cross_attention` (`models/fusion/cross_attention.py`), which any family may name; this
family exports the model of two towers, the block and a matching head.
"""

from __future__ import annotations

from edgevqa.export.families.dual_encoder import DualEncoders


class CrossAttentionModel(DualEncoders):
    """The family `cross_attention`: graphs `vision` (with the projection) and `matcher`."""
