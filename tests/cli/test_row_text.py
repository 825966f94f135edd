"""Words of the tables."""

from __future__ import annotations

import pytest

from edgevqa.cli.row_text import counted, how_quantised, otherwise_quantised
from edgevqa.runtime.manifest import Precision, VariantSpec


@pytest.mark.parametrize(("number", "text"), [(0, "0 candidates"), (1, "1 candidate"), (1200, "1,200 candidates")])
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "candidate") == text


@pytest.mark.parametrize(
    ("precision", "usual"), [("int8", "int8"), ("mixed", "int8"), ("fp8", "fp8"), ("fp16", "fp16")]
)
def test_a_graph_is_what_its_precision_says_unless_the_recipe_says_otherwise(precision: Precision, usual: str) -> None:
    recipe = {"weight_only": {"language_decoder": "int4"}, "high_graphs": ["projector"]}
    spec = VariantSpec(precision=precision, numerics="u8-fp32", weights=None, graphs={}, recipe=recipe)
    names = ("vision_trunk", "language_decoder", "projector")
    assert [how_quantised(spec, name) for name in names] == [usual, "weight-int4", "float"]
    assert otherwise_quantised(spec) == "language_decoder weight-int4, projector float"
