"""Quantise every graph of a bundle with one recipe, in a process of its own; what fails is told, not hidden."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from benchmarks.quantization.captured import Feed
from benchmarks.quantization.recipes import Recipe
from benchmarks.quantization.task import Task, save_feeds
from edgevqa.calibration.linears import find_linears
from edgevqa.runtime.bundle import Bundle

TIME_LIMIT_S = 3600
SHOWN = 300  # characters of an error


@dataclass(frozen=True, kw_only=True)
class Source:
    """A float32 graph as one file, what it gets, and its nodes' names."""

    graph: str
    path: Path
    feeds: Path
    linears: list[str]
    others: list[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a recipe made: a file for each graph, or the reason why there is none."""

    files: dict[str, Path]
    errors: dict[str, str]
    seconds: float


def prepare(bundle: Bundle, feeds: Mapping[str, Sequence[Feed]], folder: Path) -> list[Source]:
    """Write each float32 graph as one file, and its captured inputs."""
    folder.mkdir(parents=True)
    return [_source(graph, bundle.graph_path("fp32", graph), feeds[graph], folder) for graph in feeds]


def _source(graph: str, path: Path, feeds: Sequence[Feed], folder: Path) -> Source:
    model = ir.load(path)
    ir.save(ir.external_data.load_to_model(model), folder / f"{graph}.onnx")
    save_feeds(folder / f"{graph}.npz", feeds)
    linears = [linear for linear in find_linears(model.graph).values() if not linear.head]
    names = {str(use.node.name) for linear in linears for use in linear.uses}
    nodes = [str(node.name) for node in model.graph]
    return Source(
        graph=graph,
        path=folder / f"{graph}.onnx",
        feeds=folder / f"{graph}.npz",
        linears=[name for name in nodes if name in names],
        others=[name for name in nodes if name not in names],
    )


def quantize_graphs(recipe: Recipe, sources: Sequence[Source], folder: Path) -> Outcome:
    """Run the recipe on every graph. A tool that fails on one leaves it to be used in float32."""
    start = time.perf_counter()
    tasks = {source.graph: _task(recipe, source, folder / recipe.name) for source in sources}
    errors: dict[str, str] = {}
    while left := [task for graph, task in tasks.items() if graph not in errors and not _done(task)]:
        ended = _run(left, folder / recipe.name)
        errors |= {task.graph: Path(task.errors).read_text("utf-8")[:SHOWN] for task in left if _failed(task)}
        undone = [task.graph for task in left if not _done(task) and not _failed(task)]
        if undone:
            errors[undone[0]] = ended  # the process ended at this one; the others get a new process
    return Outcome(
        files={graph: Path(task.target) for graph, task in tasks.items() if graph not in errors},
        errors=errors,
        seconds=time.perf_counter() - start,
    )


def _task(recipe: Recipe, source: Source, folder: Path) -> Task:
    scratch = folder / f"{source.graph}.scratch"
    scratch.mkdir(parents=True)
    return Task(
        graph=source.graph,
        source=str(source.path),
        target=str(folder / f"{source.graph}.onnx"),
        feeds=str(source.feeds),
        errors=str(folder / f"{source.graph}.error"),
        scratch=str(scratch),
        linears=source.linears,
        others=source.others,
        module=recipe.module,
        options=recipe.options,
    )


def _done(task: Task) -> bool:
    return Path(task.target).is_file() and not _failed(task)


def _failed(task: Task) -> bool:
    return Path(task.errors).is_file()


def _run(tasks: Sequence[Task], folder: Path) -> str:
    """Do the tasks in a process; how that process ended, for a task that it did not come to the end of."""
    paths = [folder / f"{task.graph}.json" for task in tasks]
    for task, path in zip(tasks, paths, strict=True):
        path.write_bytes(msgspec.json.encode(task))
    command = [sys.executable, "-m", "benchmarks.quantization.worker", *map(str, paths)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"not finished after {TIME_LIMIT_S} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"exit code {done.returncode}, no file written; {lines[-1] if lines else 'no message'}"[:SHOWN]
