"""The memory of a search: what was measured of every candidate, one line each, so that a rerun goes on where it was."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.sensitivity import Effect


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag="plan", forbid_unknown_fields=True):
    """What was found before the first candidate, for one `request` (what was asked for).

    `rank_samples` is how many questions a layer is measured with, `samples` how many a candidate of the search;
    `answer_s` is how long an answer takes with all that is around it, `load_s` how long a candidate takes to be written
    and loaded; `graph_ms` is each float graph's part of an answer, in milliseconds.
    """

    request: str
    rank_samples: int
    samples: int
    answer_s: float
    load_s: float
    graph_ms: dict[str, float]


class Trial(msgspec.Struct, frozen=True, kw_only=True, tag="trial", forbid_unknown_fields=True):
    """One candidate and its effect. `quantised` are its quantised layers, sorted; `mode` says what the rest is."""

    mode: str
    quantised: list[str]
    effect: Effect
    seconds: float

    @property
    def key(self) -> tuple[str, frozenset[str], int]:
        return self.mode, frozenset(self.quantised), self.effect.samples


class Records:
    """Plans and trials in a JSONL file. A line that was cut off or is of another form is passed over.

    `settings` (any JSON) tell apart what may not be mixed: another bundle, calibration, data set, seed or backend has
    another file in `folder`.
    """

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        key = sha256_bytes(msgspec.json.encode(settings, order="deterministic"))
        self.path = folder / f"{key[:32]}.jsonl"
        self._plans: dict[str, Plan] = {}
        self._trials: dict[tuple[str, frozenset[str], int], Trial] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._trials)

    def plan(self, request: str) -> Plan | None:
        """The plan that was made for this request, or None."""
        return self._plans.get(request)

    def trial(self, mode: str, quantised: frozenset[str], samples: int) -> Trial | None:
        """What is known of a candidate, or None."""
        return self._trials.get((mode, quantised, samples))

    def add(self, record: Plan | Trial) -> None:
        """Keep a record, at once on the disk. Raises `OSError`."""
        self._keep(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() and not self._ends_with_newline():
                file.write(b"\n")
            file.write(msgspec.json.encode(record) + b"\n")

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def _read(self) -> None:
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                self._keep(msgspec.json.decode(line, type=Plan | Trial))
            except msgspec.MsgspecError:
                continue  # the last line of a run that was killed

    def _keep(self, record: Plan | Trial) -> None:
        if isinstance(record, Plan):
            self._plans[record.request] = record
        else:
            self._trials[record.key] = record
