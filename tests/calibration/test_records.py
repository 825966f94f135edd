"""The memory of a search survives kills, and keeps apart what may not be mixed."""

from __future__ import annotations

from pathlib import Path

from edgevqa.calibration.search.records import Plan, Records, Trial
from edgevqa.runtime.sensitivity import Effect

SETTINGS: dict[str, object] = {"bundle": "abc", "seed": 0}


def effect(samples: int = 64, drop: float = 0.5) -> Effect:
    return Effect(
        samples=samples,
        agreement=99.0,
        accuracy=80.0,
        drop=drop,
        drop_ci95=(-0.5, 1.5),
        log_likelihood_cost=0.01,
        log_likelihood_shift=0.02,
    )


def trial(*quantised: str, mode: str = "mixed", samples: int = 64, drop: float = 0.5) -> Trial:
    return Trial(mode=mode, quantised=list(quantised), effect=effect(samples, drop), seconds=1.0)


def test_a_later_run_finds_what_was_measured(tmp_path: Path) -> None:
    records = Records(tmp_path, SETTINGS)
    plan = Plan(request="x", rank_samples=32, samples=64, answer_s=0.1, load_s=0.2, graph_ms={"projector": 1.0})
    records.add(plan)
    records.add(trial("a", "b"))
    again = Records(tmp_path, SETTINGS)
    assert len(again) == 1
    assert again.plan("x") == plan
    assert again.plan("y") is None
    assert again.trial("mixed", frozenset({"b", "a"}), 64) == trial("a", "b")


def test_mode_samples_and_layers_tell_candidates_apart(tmp_path: Path) -> None:
    records = Records(tmp_path, SETTINGS)
    records.add(trial("a"))
    assert records.trial("only", frozenset({"a"}), 64) is None
    assert records.trial("mixed", frozenset({"a"}), 128) is None
    assert records.trial("mixed", frozenset({"a", "b"}), 64) is None
    assert records.trial("mixed", frozenset({"a"}), 64) is not None


def test_other_settings_have_another_file(tmp_path: Path) -> None:
    Records(tmp_path, SETTINGS).add(trial("a"))
    assert len(Records(tmp_path, {**SETTINGS, "seed": 1})) == 0
    assert len(Records(tmp_path, dict(reversed(SETTINGS.items())))) == 1


def test_a_killed_run_loses_one_candidate_at_most(tmp_path: Path) -> None:
    records = Records(tmp_path, SETTINGS)
    records.add(trial("a"))
    records.add(trial("b"))
    records.path.write_bytes(records.path.read_bytes()[:-20])
    again = Records(tmp_path, SETTINGS)
    assert len(again) == 1
    again.add(trial("c"))
    final = Records(tmp_path, SETTINGS)
    assert len(final) == 2
    assert final.trial("mixed", frozenset({"c"}), 64) is not None
