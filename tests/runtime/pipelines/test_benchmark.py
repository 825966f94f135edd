"""Latency without a data set: what is measured, and that it is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevqa.runtime.benchmark import Spread, measure
from edgevqa.runtime.errors import ConfigError

GRAPHS = {"vision_trunk", "question_encoder", "vision_fusion", "projector", "language_encoder", "language_decoder"}


def test_percentiles() -> None:
    spread = Spread.of([float(number) for number in range(101)])
    assert (spread.p50, spread.p90, spread.p99, spread.lowest, spread.highest) == (50, 90, 99, 0, 100)
    assert Spread.of([7.0]).p99 == 7.0


def test_first_and_next_answers_and_every_graph_are_timed(toy_bundle: Path) -> None:
    report = measure(toy_bundle, runs=3, warm_up_runs=1, threads=1)
    assert (report.runs, report.warm_up_runs, report.variant, report.backend) == (3, 1, "fp32", "onnxruntime")
    assert set(report.latency_ms) == {"first", "next"}
    assert set(report.stage_ms) >= GRAPHS
    for spread in (*report.latency_ms.values(), *report.stage_ms.values()):
        assert 0 < spread.lowest <= spread.p50 <= spread.p90 <= spread.p99 <= spread.highest
    assert report.stage_ms["vision_trunk"].lowest < report.latency_ms["first"].highest
    assert min(report.tokens.values()) >= 1
    assert report.load_ms > 0


@pytest.mark.parametrize("options", [{"runs": 0}, {"warm_up_runs": -1}])
def test_there_is_at_least_one_run(toy_bundle: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 and 0"):
        measure(toy_bundle, **options)  # type: ignore[arg-type]
