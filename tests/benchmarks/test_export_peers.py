"""The comparison with other exporters: who is ahead, what a graph is worth, and what becomes of exports that fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from benchmarks.exporters.export_rows import Row
    from benchmarks.exporters.timing import Timing

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def timing(times: float, *, half: float = 0.01) -> Timing:
    """Ours takes 2 ms and theirs `times` as long; the interval is `half` to each side."""
    from benchmarks.exporters.timing import Spread, Timing
    from benchmarks.quantization.speed import Ratio

    ours, theirs = (Spread(median=each, p10=each, p90=each, wall=each) for each in (2.0, 2.0 * times))
    ratio = Ratio(median=times, median_ci95=(times - half, times + half), p10=times, p90=times)
    return Timing(rounds=20, batch=1, ours=ours, theirs=theirs, ratio=ratio)


def row(*, ours: float | None = 1e-6, theirs: float | None = 1e-6, **others: Any) -> Row:
    import msgspec

    from benchmarks.exporters.export_rows import Row, Side

    own, other = Side(difference=ours, nodes=5, graphs=1), Side(difference=theirs, nodes=9, graphs=1)
    made = Row(model="m", tool="other", state="works", ours=own, theirs=other)
    return msgspec.structs.replace(made, **others)


@pytest.mark.parametrize(
    ("times", "half", "listed"),
    [
        (0.9, 0.01, True),
        (0.96, 0.001, True),
        (0.97, 0.001, False),
        (0.9, 0.1, False),
        (1.0, 0.0, False),
        (1.5, 0.01, False),
    ],
)
def test_another_exporter_is_ahead_where_it_is_clearly_faster(times: float, half: float, listed: bool) -> None:
    from benchmarks.exporters.export_rows import ahead

    for what in ("forward", "step"):
        timed: Any = {what: timing(times, half=half)}
        found = ahead([row(**timed)])
        assert [line.startswith(f"m: other is faster in a {what}") for line in found] == ([True] if listed else [])


@pytest.mark.parametrize(
    ("ours", "theirs", "state", "listed"),
    [
        (1e-2, 1e-6, "works", True),
        (None, 1e-6, "frozen", True),
        (1e-2, 1e-2, "wrong", False),
        (1e-6, 1e-2, "wrong", False),
        (9e-5, 1e-6, "works", False),
    ],
)
def test_another_exporter_is_ahead_where_only_it_is_right(
    ours: float | None, theirs: float, state: str, listed: bool
) -> None:
    from benchmarks.exporters.export_rows import ahead

    assert bool(ahead([row(ours=ours, theirs=theirs, state=state)])) is listed


def test_the_table_has_a_line_a_row_with_reasons() -> None:
    from benchmarks.exporters.export_rows import table

    works, fails = row(forward=timing(1.25)), row(state="fails", note="ValueError: a|b", theirs=None)
    lines = table([works, fails])
    assert len(lines) == 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "2.50, 2.00 | x 1.25 (1.24–1.26)" in lines[2]
    assert r"no: ValueError: a\|b" in lines[3]


def test_an_export_that_fails_is_told_by_its_error(tmp_path: Path) -> None:
    from benchmarks.exporters.peer_graphs import export_with

    code = "import sys\ntry:\n    raise KeyError('first')\nexcept KeyError as e:\n    raise ValueError('last\\nmore') from e"
    failed = export_with([sys.executable, "-c", code], tmp_path / "failed")
    assert (failed.graphs, failed.error) == ({}, "ValueError: last")
    code = "from pathlib import Path; Path('model.onnx').write_text('x'); Path('model.onnx.data').write_text('xyz')"
    written = export_with([sys.executable, "-c", code], tmp_path / "written")
    assert written.graphs == {"model": str(tmp_path / "written" / "model.onnx")}
    assert written.error is None
    again = export_with([sys.executable, "-c", "raise ValueError"], tmp_path / "written")
    assert again == written


def test_times_are_compared_in_turn() -> None:
    from benchmarks.exporters.timing import compare

    order: list[str] = []

    def work(name: str, amount: int) -> None:
        order.append(name)
        sum(range(amount))

    found = compare(lambda: work("ours", 20_000), lambda: work("theirs", 60_000), seconds=0.05)
    measured = order[6:]
    assert len(measured) == 2 * found.rounds
    assert {tuple(measured[place : place + 2]) for place in range(0, len(measured), 2)} == {
        ("ours", "theirs"),
        ("theirs", "ours"),
    }
    assert found.ratio.median > 1.5
    assert found.theirs.median > found.ours.median
