"""One model: our bundle, the exports of the others, and a row for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exporters import bundles, checkpoints, decode_steps, peer_graphs
from benchmarks.exporters.bundles import Array
from benchmarks.exporters.export_rows import TOLERANCE, Row, Side
from benchmarks.exporters.peer_graphs import Outcome, PeerGraph, host
from benchmarks.exporters.subjects import SUBJECTS, Subject, last_place
from benchmarks.exporters.timing import Timing, compare
from edgevqa.export import ExportOptions, export
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.graphs import Graphs

CHECKED, TRACED = (3, 9), (2, 7)  # batch and words
RELATIVE = 1e-5  # of the largest value, which float32 allows for
TRANSFORMERS, OPTIMUM = "transformers.exporters", "optimum-onnx"
Feed = Mapping[str, Array]
Forward = Callable[[Feed], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where everything lies, optimum's Python or None, and the seconds of a timed pair."""

    scratch: Path
    optimum: Path | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model's folder, the eager model, our bundle and its open graphs."""

    subject: Subject
    folder: Path
    model: Any
    bundle: Bundle
    graphs: Graphs

    def inputs(self, shape: tuple[int, int]) -> Feed:
        """As arrays."""
        given = self.subject.inputs(self.model, *shape)
        return {name: value.numpy() for name, value in given.items()}

    @torch.no_grad()
    def expected(self, shape: tuple[int, int]) -> Feed:
        """Of eager PyTorch."""
        found = self.subject.expected(self.model, self.subject.inputs(self.model, *shape))
        return {name: value.numpy() for name, value in found.items()}

    def ours(self, feed: Feed) -> Mapping[str, Any]:
        """Of our graphs."""
        return self.subject.ours(self.graphs, self.bundle.manifest, feed)


def prepare(subject: Subject, setting: Setting) -> Prepared:
    """Make the model and our bundle of it."""
    torch.manual_seed(0)
    folder, path = setting.scratch / subject.folder / "model", setting.scratch / subject.folder / "ours"
    if not folder.exists():
        folder.mkdir(parents=True)
        getattr(checkpoints, subject.folder)(folder)
    if not path.exists():  # removed by hand, ours alone is exported anew
        export(str(folder), path, ExportOptions(verify=False))
    bundle = Bundle.open(path)
    model = subject.load(folder, attn_implementation="eager")
    return Prepared(subject=subject, folder=folder, model=model, bundle=bundle, graphs=bundles.open_graphs(bundle))


def measure(subject: Subject, setting: Setting) -> Iterator[Row]:
    """A row for each tool."""
    ready = prepare(subject, setting)
    for tool in (TRANSFORMERS, OPTIMUM):
        if tool == OPTIMUM and setting.optimum is None:
            continue
        row = Row(model=subject.name, tool=tool, state="fails", ours=_our_side(ready))
        place = setting.scratch / subject.folder
        outcome = _export(ready, tool, setting, place / tool)
        row.seconds, row.note = outcome.seconds, outcome.error or ""
        if outcome.graphs:
            _compare(row, ready, outcome, setting)
        if subject.generates:
            steps = outcome if tool == OPTIMUM else _generation(ready, place / "generation")
            decode_steps.compare_steps(row, ready, steps, setting.seconds)
        yield row
    ready.graphs.close()


def noise(setting: Setting) -> Timing:
    """Two sessions of the same graph of ours: what a ratio is when nothing differs."""
    ready = prepare(SUBJECTS[0], setting)
    other = bundles.open_graphs(ready.bundle)
    feed = ready.inputs(ready.subject.timed)
    manifest = ready.bundle.manifest
    return compare(
        lambda: ready.ours(feed),
        lambda: ready.subject.ours(other, manifest, feed),
        seconds=setting.seconds,
    )


def _export(ready: Prepared, tool: str, setting: Setting, output: Path) -> Outcome:
    if tool == OPTIMUM and setting.optimum is not None:
        command = peer_graphs.optimum_command(setting.optimum, ready.folder, output, ready.subject.task)
    else:
        command = peer_graphs.transformers_command(ready.subject.name, ready.folder, output, "whole")
    return peer_graphs.export_with(command, output)


def _generation(ready: Prepared, output: Path) -> Outcome:
    return peer_graphs.export_with(
        peer_graphs.transformers_command(ready.subject.name, ready.folder, output, "generation"), output
    )


def _our_side(ready: Prepared) -> Side:
    files = [ready.bundle.graph_path("fp32", name) for name in ready.bundle.variant("fp32").graphs]
    side = Side(size_bytes=bundles.size_bytes(ready.bundle), nodes=peer_graphs.node_count(files), graphs=len(files))
    _judge(side, ready, ready.ours, CHECKED)
    return side


def _compare(row: Row, ready: Prepared, outcome: Outcome, setting: Setting) -> None:
    files = [Path(file) for file in outcome.graphs.values()]
    row.theirs = Side(size_bytes=peer_graphs.size_bytes(files), nodes=peer_graphs.node_count(files), graphs=len(files))
    try:
        forward = _whole(PeerGraph(files[0])) if len(files) == 1 else decode_steps.encoder_decoder(outcome)
    except Exception as error:  # noqa: BLE001 (whatever ONNX Runtime says of another tool's graph is told)
        row.note = _first_line(error)
        return
    row.state, row.note = _state(row.theirs, ready, forward)
    if row.state in ("works", "frozen"):
        row.forward = _time(ready, forward, setting.seconds)


def _whole(graph: PeerGraph) -> Forward:
    def forward(feed: Feed) -> Mapping[str, Any]:
        return graph.run(feed)

    return forward


def _state(side: Side, ready: Prepared, forward: Forward) -> tuple[Any, str]:
    try:
        wrong = _judge(side, ready, forward, CHECKED)
    except Exception as error:  # noqa: BLE001 (see `_compare`)
        refused = _first_line(error)
        try:
            wrong = _judge(side, ready, forward, TRACED)
        except Exception as again:  # noqa: BLE001 (see `_compare`)
            return "fails", _first_line(again)
        return ("wrong", wrong) if wrong else ("frozen", refused)
    return ("wrong", wrong) if wrong else ("works", "")


def _judge(side: Side, ready: Prepared, forward: Forward, shape: tuple[int, int]) -> str:
    """Fill in the difference from eager PyTorch; gives what is wrong, or nothing."""
    expected, found = ready.expected(shape), forward(ready.inputs(shape))
    if missing := sorted(set(expected) - set(found)):
        return f"no output {', '.join(missing)}; it has {', '.join(sorted(found)[:4])}"
    arrays = {name: last_place(name, host(found[name])) for name in expected}
    for name, value in arrays.items():
        if value.shape != expected[name].shape:
            return f"{name} is {value.shape}, not {expected[name].shape}"
    side.difference = max(float(np.abs(value - expected[name]).max()) for name, value in arrays.items())
    largest = max(float(np.abs(value).max()) for value in expected.values())
    side.tolerance = TOLERANCE + RELATIVE * largest
    return "" if side.right else f"differs by {side.difference:.1e} at values up to {largest:.1e}"


def _time(ready: Prepared, forward: Forward, seconds: float) -> Timing:
    """At batch 1, or as traced where the other graph takes nothing else."""
    feed = ready.inputs(ready.subject.timed)
    try:
        forward(feed)
    except Exception:  # noqa: BLE001 (see `_compare`)
        feed = ready.inputs(TRACED)
    batch = len(next(iter(feed.values())))
    return compare(lambda: ready.ours(feed), lambda: forward(feed), batch=batch, seconds=seconds)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
