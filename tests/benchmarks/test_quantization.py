"""The comparison with other quantisers: who wins, what tools get, and what becomes of tools that fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from benchmarks.quantization.peer_graphs import Source
    from benchmarks.quantization.rows import Row

ROOT = Path(__file__).parents[2]
TOOL = """
import os
from pathlib import Path

def quantize(task, feeds, *, told):
    if task.graph == "raises":
        raise ValueError("no such operator")
    if task.graph == "dies":
        os._exit(7)
    values = sorted(float(feed["x"][0]) for feed in feeds)
    Path(task.target).write_text(f"{told} {values} {task.linears} {task.others}")
"""


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def row(name: str, agreement: float, times: float, *, numerics: str = "s8-fp32") -> Row:
    from benchmarks.quantization.answering import Quality
    from benchmarks.quantization.rows import Row
    from benchmarks.quantization.speed import Ratio, Speedup

    quality = Quality(
        dataset="d",
        n=1000,
        accuracy=agreement,
        accuracy_ci95=(agreement - 0.5, agreement + 0.5),
        exact_match=agreement,
        agreement=agreement,
        agreement_ci95=(agreement - 0.5, agreement + 0.5),
        batch=8,
    )
    ratio = Ratio(median=times, median_ci95=(times - 0.05, times + 0.05), p10=times, p90=times)
    speed = Speedup(
        backend="b",
        variant=name,
        baseline="fp32",
        rounds=1,
        answers_per_s=1.0,
        baseline_answers_per_s=1.0,
        latency_ms={},
        baseline_latency_ms={},
        ratio={"first": ratio, "vision": ratio},
        tokens=1,
        baseline_tokens=1,
    )
    tool = name.partition("-")[0]
    return Row(name=name, tool=tool, settings="", numerics=numerics, quality=[quality], speed={"b": speed})


@pytest.mark.parametrize(
    ("agreement", "times", "wins"),
    [
        (99.0, 2.2, True),
        (99.0, 2.09, False),
        (98.0, 3.0, False),
        (99.9, 2.0, False),
        (100.5, 2.0, True),
        (100.5, 1.5, False),
    ],
)
def test_another_tool_wins_where_it_is_clearly_better(agreement: float, times: float, wins: bool) -> None:
    from benchmarks.quantization.rows import beaten_by

    found = beaten_by([row("edgevqa-s8-fp32", 99.0, 2.0), row("other-default", agreement, times)])
    assert [line.startswith("b: other-default") for line in found] == ([True] if wins else [])


def test_what_fails_is_in_the_table_with_its_reason() -> None:
    from benchmarks.quantization.rows import table

    failed = row("other-default", 90.0, 1.0)
    failed.speed, failed.speed_errors = {}, {"b": "cannot load"}
    failed.float32 = {"projector": "no such operator"}
    lines = table([row("edgevqa-s8-fp32", 99.0, 2.0), failed])
    assert lines[2].split()[0] == "other-default"
    assert lines[2].endswith("fails")
    assert lines[3:] == [
        "other-default: projector stays float32: no such operator",
        "other-default on b: cannot load",
    ]


def source(folder: Path, graph: str) -> Source:
    from benchmarks.quantization.peer_graphs import Source
    from benchmarks.quantization.task import save_feeds

    feeds = folder / f"{graph}.npz"
    save_feeds(feeds, [{"x": np.array([value], dtype=np.float32)} for value in (3.0, 1.0, 2.0)])
    return Source(graph=graph, path=folder / "none.onnx", feeds=feeds, linears=["fc"], others=["add"])


def test_a_tool_that_fails_or_dies_on_a_graph_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quantization.peer_graphs import quantize_graphs
    from benchmarks.quantization.recipes import Recipe

    (tmp_path / "some_tool.py").write_text(TOOL, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    recipe = Recipe(name="r", tool="t", module="some_tool", numerics="s8-fp32", settings="", options={"told": "yes"})
    sources = [source(tmp_path, graph) for graph in ("first", "dies", "raises", "last")]
    outcome = quantize_graphs(recipe, sources, tmp_path / "work")
    assert sorted(outcome.files) == ["first", "last"]
    assert outcome.files["last"].read_text(encoding="utf-8") == "yes [1.0, 2.0, 3.0] ['fc'] ['add']"
    assert outcome.errors["raises"] == "ValueError: no such operator"
    assert outcome.errors["dies"].startswith("exit code 7")


def test_the_interval_of_a_median_narrows_with_rounds() -> None:
    from benchmarks.quantization.speed import ratio_of

    few, many = ratio_of([float(value) for value in range(5)]), ratio_of([float(value) for value in range(101)])
    assert (few.median, few.median_ci95) == (2.0, (0.0, 4.0))
    assert (many.median, many.median_ci95) == (50.0, (40.0, 60.0))
    assert (many.p10, many.p90) == (10.0, 90.0)
