"""The rows of the comparison with other exporters: one a model and tool, as a table, and where another one is ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from benchmarks.exporters.timing import Timing

State = Literal["works", "frozen", "wrong", "fails"]
TOLERANCE = 1e-4
SAME = 0.03  # two sessions of one and the same graph may differ by that in an unlucky layout of their memory


class Side(msgspec.Struct, kw_only=True):
    """What one exporter's graphs are: difference from eager PyTorch (None: not comparable), bytes, nodes, graphs."""

    difference: float | None = None
    tolerance: float = TOLERANCE
    size_bytes: int = 0
    nodes: int = 0
    graphs: int = 0

    @property
    def right(self) -> bool:
        """Whether it computes what eager PyTorch does."""
        return self.difference is not None and self.difference <= self.tolerance


class Row(msgspec.Struct, kw_only=True):
    """A model, another tool, and ours.

    `state` is the other tool's: `works`; `frozen`, only for the batch that was traced; `wrong`, a graph whose outputs are not
    the model's; `fails`, no graph. `note` tells why. `step` is one token of a decoder with a past.
    """

    model: str
    tool: str
    state: State
    note: str = ""
    seconds: float = 0.0
    ours: Side
    theirs: Side = msgspec.field(default_factory=Side)
    forward: Timing | None = None
    step: Timing | None = None
    step_difference: tuple[float, float] | None = None
    step_note: str = ""


def ahead(rows: Sequence[Row]) -> list[str]:
    """Where another tool is faster than ours, by more than `SAME` and the ratio's 95% interval, or right where ours is not."""
    return [line for row in rows for line in _ahead(row)]


def _ahead(row: Row) -> Iterator[str]:
    where = f"{row.model}: {row.tool}"
    if row.state in ("works", "frozen") and row.theirs.right and not row.ours.right:
        yield f"{where} differs by {row.theirs.difference:.1e} from PyTorch, ours by {row.ours.difference}"
    for what, timing in (("forward", row.forward), ("step", row.step)):
        if timing is not None and timing.ratio.median_ci95[1] < 1 - SAME:
            low, high = timing.ratio.median_ci95
            yield (
                f"{where} is faster in a {what}: {timing.theirs.median:.2f} ms, ours {timing.ours.median:.2f} ms "
                f"(x {timing.ratio.median:.2f}, {low:.2f} to {high:.2f})"
            )


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in markdown."""
    head = (
        "| model | exporter | works | difference: theirs, ours | MB: theirs, ours | nodes: theirs, ours "
        "| forward, ms: theirs, ours | ours is faster by | one token, ms: theirs, ours | ours is faster by |"
    )
    return [head, "|---" * (head.count("|") - 1) + "|", *(_line(row) for row in rows)]


def _line(row: Row) -> str:
    sizes = f"{_mb(row.theirs)}, {_mb(row.ours)}"
    nodes = f"{row.theirs.nodes or '–'}, {row.ours.nodes}"
    works = {"works": "yes", "frozen": "only at the traced batch", "wrong": "wrong", "fails": "no"}[row.state]
    told = f"{works}: {_cell(row.note)}" if row.note else works
    cells = [
        row.model,
        row.tool,
        told,
        f"{_difference(row.theirs)}, {_difference(row.ours)}",
        sizes,
        nodes,
        *_timing(row.forward),
        *_timing(row.step),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _mb(side: Side) -> str:
    return f"{side.size_bytes / 1e6:.1f}" if side.size_bytes else "–"


def _difference(side: Side) -> str:
    return "–" if side.difference is None else f"{side.difference:.0e}"


def _timing(timing: Timing | None) -> tuple[str, str]:
    if timing is None:
        return "–", "–"
    low, high = timing.ratio.median_ci95
    took = f"{timing.theirs.median:.2f}, {timing.ours.median:.2f}"
    batch = "" if timing.batch == 1 else f" (batch {timing.batch})"
    return took + batch, f"x {timing.ratio.median:.2f} ({low:.2f}–{high:.2f})"
