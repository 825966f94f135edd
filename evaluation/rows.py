"""One row of an evaluation: a variant of a bundle on a backend, with everything that was measured of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from edgevqa.evaluation.metrics import Agreement, Figures, Scores
from edgevqa.evaluation.significance import McNemar
from edgevqa.runtime.benchmark import Spread


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one variant on one backend. Percentages are 0 to 100, MB are 10^6 bytes.

    Right answers: `accuracy` (VQA), `exact_match`, `anls`, over the `scored` of `n` questions that have answers; None
    without any. `ci95` (low, high) is that of `accuracy`, found by `ci_method`. `agreement`: the share of answers that
    are those of the float variant on the same backend, letter by letter; `accuracy_drop` is float's accuracy less this one's in
    points, `mcnemar` tests it (`b`: float alone right, `c`: this one alone).

    Speed: `latency_ms` has `first` and `next` answers, one question at a time, `latency_runs` of each after `warm_up_runs`;
    `per_graph_ms` what each graph takes of a first answer; `throughput_per_s` answers a second, `max_batch` at once.
    `peak_memory_mb` is all that the row's own process held in RAM at its worst, Python, libraries and batches included.
    `size_mb`: graphs and weights on disk. `energy_j`: joules an answer, in batches, of all that `energy_sensors`
    see, idle power included; None without a sensor, and then `energy_missing` says why.
    """

    bundle: str
    precision: str
    variant: str
    numerics: str
    backend: str
    dataset: str
    n: int
    scored: int
    accuracy: float | None
    ci95: tuple[float, float] | None
    ci_method: str | None
    exact_match: float | None
    anls: float | None
    by_type: dict[str, Figures]
    agreement: float | None
    agreement_ci95: tuple[float, float] | None
    changed: int | None
    accuracy_drop: float | None
    mcnemar: McNemar | None
    latency_ms: dict[str, Spread]
    per_graph_ms: dict[str, Spread]
    latency_runs: int
    warm_up_runs: int
    throughput_per_s: float
    load_ms: float
    peak_memory_mb: float | None
    size_mb: float
    energy_j: float | None
    energy_sensors: list[str]
    energy_missing: str | None
    threads: int
    max_batch: int
    note: str | None

    @property
    def name(self) -> str:
        """What people call the row."""
        return f"{self.variant} on {self.backend}"


class FailedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be measured, and why; `exit_code` tells the error's branch of the exception tree."""

    bundle: str
    precision: str
    variant: str
    backend: str
    error: str
    exit_code: int


def identifier(text: str) -> str:
    """A name as expressions can write it: `int8-u8-fp32` is `int8_u8_fp32`."""
    return re.sub(r"\W", "_", text)


def numbers_of(row: Row) -> dict[str, float | None]:
    """Every figure of a row by its dotted name, such as `latency_ms.next.p50` or `by_type.yes_no.accuracy`."""
    return dict(_flatten("", msgspec.to_builtins(row)))


def planned_numbers(graphs: Sequence[str], types: Sequence[str], *, answers: bool, latency: bool) -> set[str]:
    """The names that `numbers_of` a row will have, told before it is measured."""
    spread = Spread(p50=0, p90=0, p99=0, lowest=0, highest=0)
    figures = Figures(n=0, pictures=0, accuracy=0, ci95=(0, 0), ci_method="wilson over pictures", exact_match=0, anls=0)
    scores = Scores(**msgspec.structs.asdict(figures), by_type=dict.fromkeys(types, figures)) if answers else None
    example = build_row(
        identity={"bundle": "", "precision": "", "variant": "", "numerics": "", "backend": "", "dataset": ""},
        scores=scores,
        agreed=Agreement(n=0, same=0, percent=0, ci95=(0, 0)),
        drop=0.0 if answers else None,
        mcnemar=McNemar(b=0, c=0, p_value=1) if answers else None,
        measured={
            "n": 0,
            "latency_ms": {"first": spread, "next": spread} if latency else {},
            "per_graph_ms": dict.fromkeys(graphs, spread) if latency else {},
            "latency_runs": 0,
            "warm_up_runs": 0,
            "throughput_per_s": 0.0,
            "load_ms": 0.0,
            "peak_memory_mb": 0.0,
            "size_mb": 0.0,
            "energy_j": 0.0,
            "energy_sensors": [],
            "energy_missing": None,
            "threads": 0,
            "max_batch": 0,
            "note": None,
        },
    )
    return {name for name, value in numbers_of(example).items() if value is not None}


def build_row(
    *,
    identity: Mapping[str, Any],
    scores: Scores | None,
    agreed: Agreement | None,
    drop: float | None,
    mcnemar: McNemar | None,
    measured: Mapping[str, Any],
) -> Row:
    """A row from what it is, how right it is, and what was measured."""
    return Row(
        **identity,
        scored=0 if scores is None else scores.n,
        accuracy=None if scores is None else scores.accuracy,
        ci95=None if scores is None else scores.ci95,
        ci_method=None if scores is None else scores.ci_method,
        exact_match=None if scores is None else scores.exact_match,
        anls=None if scores is None else scores.anls,
        by_type={} if scores is None else scores.by_type,
        agreement=None if agreed is None else agreed.percent,
        agreement_ci95=None if agreed is None else agreed.ci95,
        changed=None if agreed is None else agreed.n - agreed.same,
        accuracy_drop=drop,
        mcnemar=mcnemar,
        **measured,
    )


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, float | None]]:
    """Numbers (and None) below a value of JSON; pairs are intervals."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{identifier(str(key))}" if prefix else str(key), inner)
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        for key, inner in zip(("low", "high"), value, strict=True):
            yield from _flatten(f"{prefix}.{key}", inner)
    elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        yield prefix, value
