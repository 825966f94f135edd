"""The time of every layer of a bundle: Linear layers by name, everything else by its kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgevqa.runtime.backend_choice import Note
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, ConfigError
from edgevqa.runtime.hashing import Progress
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions.base import NodeTime, ProfiledSession
from edgevqa.runtime.synthetic import FIRST_QUESTION, noise_picture

_UNNAMED = "node_"  # how the exporter names all nodes but those of Linear layers


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer takes of an answer.

    `layer` is `<graph>/<name>` of a Linear layer (of several joined by ` + ` where the backend runs them as one), with
    its bias, its quantisation and whatever was fused into it; for all other nodes it is `<graph>/(<kind>)`. `runs`
    counts the nodes that ran. `local_error` (relative) and `kept_high` are those of the variant's report, None where
    there is none.
    """

    layer: str
    kinds: list[str]
    time_ms: float
    share: float
    runs: float
    local_error: float | None = None
    kept_high: bool | None = None


class ProfileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `profile` found. All times are those of a first answer; `layers` has the slowest first.

    `graph_ms` are the graphs' times with profiling on: what they have beyond their layers is the backend's own, and
    the cost of profiling.
    """

    precision: str
    variant: str
    backend: str
    threads: int
    runs: int
    tokens: int
    graph_ms: dict[str, float]
    layers: list[LayerTime]


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant's report says of a layer; `reason` tells why it stays high."""

    name: str
    local_error: float | None = None
    high: bool | None = None
    reason: str | None = None

    @property
    def kept_high(self) -> bool:
        return self.reason is not None if self.high is None else self.high


class _VariantReport(msgspec.Struct, frozen=True, kw_only=True):
    layers: list[LayerReport] = []


def profile(
    path: str | os.PathLike[str],
    *,
    runs: int = 5,
    warm_up_runs: int = 2,
    progress: Progress | None = None,
    note: Note | None = None,
    **options: Any,
) -> ProfileReport:
    """Load the bundle with profiling sessions and time the nodes of `runs` first answers on a synthetic picture.

    `options` are the fields of `PipelineOptions`; `progress` and `note` are called as by `Pipeline.load`. Raises
    `ConfigError` for fewer than one run and for a backend that cannot time its nodes, and what loading raises.
    """
    if runs < 1 or warm_up_runs < 0:
        raise ConfigError(f"runs is {runs} and warm_up_runs {warm_up_runs}; expected at least 1 and 0.")
    chosen = PipelineOptions.of({**options, "question_cache_mb": 0})
    bundle = Bundle.open(path, check=chosen.check, progress=progress)
    with Pipeline.from_bundle(bundle, chosen, note=note, profile=True) as pipeline:
        known = read_layer_report(bundle, pipeline.variant)
        sessions = _profiled(pipeline)
        for _ in range(warm_up_runs):
            _answer(pipeline)
        pipeline.statistics.reset()
        for session in sessions.values():
            session.forget_times()
        tokens = [_answer(pipeline) for _ in range(runs)][-1]
        graph_ms = {name: pipeline.statistics.stage_ms.get(name, 0.0) / runs for name in sessions}
        times = {name: session.node_times() for name, session in sessions.items()}
        return ProfileReport(
            precision=bundle.manifest.variants[pipeline.variant].precision,
            variant=pipeline.variant,
            backend=pipeline.backend,
            threads=chosen.threads,
            runs=runs,
            tokens=tokens,
            graph_ms=graph_ms,
            layers=layer_times(times, known, runs=runs),
        )


def layer_times(
    times: Mapping[str, Sequence[NodeTime]], known: Mapping[str, LayerReport], *, runs: int
) -> list[LayerTime]:
    """Node times of `runs` answers added up by layer, the slowest first. `known` are the reported layers by name."""
    spent: dict[str, list[NodeTime]] = {}
    for graph, nodes in times.items():
        layers = linear_layers(nodes) | {name.partition("/")[2] for name in known if name.startswith(f"{graph}/")}
        for node in nodes:
            spent.setdefault(f"{graph}/{_layer(node, layers)}", []).append(node)
    total_ms = sum(map(_total_ms, spent.values())) or 1.0
    rows = [_row(layer, nodes, known, runs, total_ms) for layer, nodes in spent.items()]
    return sorted(rows, key=lambda row: row.time_ms, reverse=True)


def linear_layers(nodes: Iterable[NodeTime]) -> set[str]:
    """The names of Linear layers: matrix products that bear a weight's name. A second use, `.1`, is the same layer."""
    products = {name for node in nodes for name in node.products if "." in name and not name.startswith(_UNNAMED)}
    return {name for name in products if (first := re.sub(r"\.\d+$", "", name)) == name or first not in products}


def read_layer_report(bundle: Bundle, variant: str) -> dict[str, LayerReport]:
    """The layers of the variant's report by name; empty where it has none. Raises `BundleError` for a broken one."""
    path = bundle.report_path(variant)
    if path is None:
        return {}
    try:
        return {layer.name: layer for layer in msgspec.json.decode(path.read_bytes(), type=_VariantReport).layers}
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path} is no report of a variant: {error}. Quantise the bundle again.") from error


def _layer(node: NodeTime, layers: set[str]) -> str:
    """The Linear layers that the node belongs to, or its kind."""
    names = (*node.products, *node.nodes)
    found = {layer: None for name in names if (layer := _owner(name, layers)) is not None}
    return " + ".join(found) if found else f"({node.kind})"


def _owner(name: str, layers: set[str]) -> str | None:
    """The layer with the longest name that a node's name begins with: `x.bias` and `x/Fused` belong to `x`."""
    ends = [match.start() for match in re.finditer(r"[./]", name)] + [len(name)]
    return next((name[:end] for end in reversed(ends) if name[:end] in layers), None)


def _row(
    layer: str, nodes: Sequence[NodeTime], known: Mapping[str, LayerReport], runs: int, total_ms: float
) -> LayerTime:
    time_ms = _total_ms(nodes)
    graph, _, names = layer.partition("/")
    told = [known[key] for name in names.split(" + ") if (key := f"{graph}/{name}") in known]
    errors = [each.local_error for each in told if each.local_error is not None]
    return LayerTime(
        layer=layer,
        kinds=sorted({node.kind for node in nodes}),
        time_ms=time_ms / runs,
        share=time_ms / total_ms,
        runs=sum(node.runs for node in nodes) / runs,
        local_error=max(errors) if errors else None,
        kept_high=any(each.kept_high for each in told) if told else None,
    )


def _total_ms(nodes: Sequence[NodeTime]) -> float:
    """All runs; each counts as the median one, so that what another process delayed does not."""
    return sum(node.run_ms * node.runs for node in nodes)


def _answer(pipeline: Pipeline) -> int:
    """A first answer; gives how many tokens were generated."""
    pipeline.clear_caches()
    answer = pipeline.answer(noise_picture(pipeline.manifest.image), FIRST_QUESTION)
    return 0 if pipeline.manifest.generation is None else len(answer.tokens)


def _profiled(pipeline: Pipeline) -> dict[str, ProfiledSession]:
    found: dict[str, ProfiledSession] = {
        name: session for name, session in pipeline.graphs.sessions.items() if isinstance(session, ProfiledSession)
    }
    if len(found) < len(pipeline.graphs.sessions):
        raise ConfigError(f"The backend {pipeline.backend} cannot time its layers. Choose another with --backend.")
    return found
