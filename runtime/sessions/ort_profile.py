"""ONNX Runtime's times of every node, from the trace that it writes: read, then removed."""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.manifest import GraphSpec
from edgevqa.runtime.sessions.base import Array, NodeTime, SessionOptions, Tensor
from edgevqa.runtime.sessions.ort import OrtSession

_SUFFIX = "_kernel_time"


class _Event(msgspec.Struct):
    """One event of the trace; times in microseconds. Keys that we do not read are left out."""

    cat: str
    name: str
    ts: int
    dur: int
    args: dict[str, Any] = {}


class ProfiledOrtSession(OrtSession):
    """A session that traces every run to a file of its own."""

    def __init__(self, path: Path, name: str, spec: GraphSpec, options: SessionOptions) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edgevqa-profile-"))
        self._runs = 0
        self._first = 0
        try:
            super().__init__(path, name, spec, options)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """As `OrtSession.run`."""
        found = super().run(inputs)
        self._runs += 1
        return found

    def forget_times(self) -> None:
        """Begin anew: what ran before does not count."""
        self._first = self._runs

    def node_times(self) -> list[NodeTime]:
        """The times since then; afterwards the session can only be closed."""
        if self._session is None:
            raise EdgeVQAError(f"Graph '{self.name}' was closed; load the pipeline again.")
        trace = Path(self._session.end_profiling()).read_bytes()
        return node_times(msgspec.json.decode(trace, type=list[_Event]), skip_runs=self._first)

    def close(self) -> None:
        """Free the session and remove its trace; closing twice is harmless."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self, options: SessionOptions) -> Any:
        settings = super()._settings(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._folder / "trace")
        return settings


def node_times(events: list[_Event], *, skip_runs: int) -> list[NodeTime]:
    """The nodes' times without those of the first `skip_runs` runs."""
    starts = sorted(event.ts for event in events if event.cat == "Session" and event.name == "model_run")
    if skip_runs >= len(starts):
        return []
    spent: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.cat == "Node" and event.name.endswith(_SUFFIX) and event.ts >= starts[skip_runs]:
            key = (event.name.removesuffix(_SUFFIX), str(event.args.get("op_name", "unknown")))
            spent.setdefault(key, []).append(event.dur)
    return [_node_time(name, kind, values) for (name, kind), values in spent.items()]


def _node_time(name: str, kind: str, spent_us: list[int]) -> NodeTime:
    product = (name.partition("/")[0],) if re.search("MatMul|Gemm", kind) else ()  # "name/Fusion" after a fusion
    run_ms = statistics.median(spent_us) / 1e3
    return NodeTime(nodes=(name,), products=product, kind=kind, run_ms=run_ms, runs=len(spent_us))
