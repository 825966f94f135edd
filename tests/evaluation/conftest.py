"""One comparison of two precisions that several test files look at; it is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevqa.evaluation.comparing import CompareOptions, Comparison, compare


@pytest.fixture(scope="session")
def comparison(two_precisions: Path) -> Comparison:
    """fp32 and int8 of the reference model on 64 questions."""
    options = CompareOptions(
        data="scenes:7:64",
        precisions=("fp32", "int8"),
        backends=("onnxruntime",),
        latency_runs=3,
        fail_if=("int8.accuracy < fp32.accuracy - 100", "int8.changed >= 0 and fp32.size_mb > 0"),
    )
    return compare([two_precisions], options)
