"""How much memory a build takes, said before it starts, and what makes it less: against what builds really took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine.estimate import check_budget, estimate_bytes, smaller_text, twice_text
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.manifest import GraphSpec, Numerics

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
SMALL, LARGE = RESULTS / "engine_builds.json", RESULTS / "engine_builds_large.json"


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle)


def options(**changes: Any) -> BuildOptions:
    given: dict[str, Any] = {"target": "rtx", **changes}
    return BuildOptions(**given)


def planned(bundle: Bundle, **changes: Any) -> dict[str, list[Profile]]:
    graphs = bundle.variant("fp32").graphs
    ranges = axis_ranges(bundle.manifest, graphs, options(**changes))
    return {name: graph_profiles(name, graph, ranges) for name, graph in graphs.items()}


def as_built(bundle: Bundle, path: Path) -> dict[str, GraphSpec]:
    """The tiny bundle's graphs as big as those that were built."""
    sizes = json.loads(path.read_text())["model"]["graphs"]
    return {
        name: msgspec.structs.replace(
            graph, parameters=sizes[name]["parameters"], nodes={"MatMul": sizes[name]["operators"]}
        )
        for name, graph in bundle.variant("fp32").graphs.items()
    }


def recorded(bundle: Bundle, path: Path) -> Iterator[tuple[str, GraphSpec, Numerics, list[Profile], dict[str, Any]]]:
    graphs = as_built(bundle, path)
    for row in json.loads(path.read_text())["rows"]:
        profiles = planned(bundle, batch=tuple(row.get("batch", (1, 4, 8))))
        numerics: Numerics = "s8-fp16" if row["variant"].endswith("s8-fp16") else row["variant"]
        for name, engine in row["graphs"].items():
            assert len(profiles[name]) == engine["profiles"]
            yield name, graphs[name], numerics, profiles[name], engine


@pytest.mark.parametrize("path", [SMALL, LARGE], ids=lambda path: path.stem)
def test_the_estimates_are_above_what_builds_took_by_at_most_40_percent(bundle: Bundle, path: Path) -> None:
    for name, graph, numerics, profiles, engine in recorded(bundle, path):
        took, told = engine["peak_memory_mb"] * 1e6, estimate_bytes(graph, numerics, profiles)
        assert took <= told <= 1.4 * took, (name, numerics, len(profiles))


def test_a_small_build_is_not_told_to_take_much(bundle: Bundle) -> None:
    """The tiny model in FP16 was built in 266 MB; a base of 450 MB refused a budget of 300."""
    assert check_budget(bundle.variant("fp32").graphs, "fp16", planned(bundle, batch=(1,)), options())[1] < 330e6


def test_operators_are_counted_without_what_the_builder_folds(bundle: Bundle) -> None:
    graph = bundle.variant("fp32").graphs["projector"]
    more = {**graph.nodes, "QuantizeLinear": 50, "DequantizeLinear": 80}
    assert estimate_bytes(msgspec.structs.replace(graph, nodes=more), "s8-fp16") == estimate_bytes(graph, "s8-fp16")
    more = {**graph.nodes, "Softmax": 50}
    assert estimate_bytes(msgspec.structs.replace(graph, nodes=more), "s8-fp16") > estimate_bytes(graph, "s8-fp16")


def test_memory_is_estimated_before_the_start(bundle: Bundle) -> None:
    graphs, profiles = bundle.variant("fp32").graphs, planned(bundle, batch=(8,))
    name, needed = check_budget(graphs, "fp32", profiles, options())
    assert needed == max(estimate_bytes(graph, "fp32") for graph in graphs.values())
    assert needed == estimate_bytes(graphs[name], "fp32") > estimate_bytes(graphs[name], "s8-fp16")
    with pytest.raises(CheckFailed, match=rf"'{name}' takes about .* --memory-budget is 100 MB\. Build the int8"):
        check_budget(graphs, "fp32", profiles, options(memory_budget_bytes=100_000_000))


def test_a_decoder_for_single_tokens_and_batches_takes_more(bundle: Bundle) -> None:
    """Its weights are laid out for both."""
    decoder = as_built(bundle, LARGE)["language_decoder"]
    both, many = planned(bundle)["language_decoder"], planned(bundle, batch=(8,))["language_decoder"]
    assert (len(both), len(many)) == (2, 1)
    for name, _, numerics, profiles, engine in recorded(bundle, LARGE):
        if name != "language_decoder" or profiles != both:
            continue
        assert estimate_bytes(decoder, numerics, many) < 0.85 * estimate_bytes(decoder, numerics, both)
        size = int(engine["size_mb"] * 1e6)
        assert "the engine is 1." in (twice_text(decoder, numerics, both, size) or "")
        assert twice_text(decoder, numerics, many, size) is None
        assert twice_text(decoder, numerics, both, size // 2) is None
    given = options(memory_budget_bytes=2_000_000_000)
    with pytest.raises(CheckFailed, match=r"Take one batch size above 1 \(--batch 4: 1 to 4 rows\), build the int8"):
        check_budget({"language_decoder": decoder}, "fp32", {"language_decoder": both}, given)


@pytest.mark.parametrize(
    ("numerics", "changes", "told", "untold"),
    [
        ("fp32", {}, ["int8 or fp16", "--batch"], ["--memory-budget", "--workspace"]),
        ("fp16", {"memory_budget_bytes": 10}, ["the int8 variant", "raise --memory-budget"], ["fp16"]),
        ("s8-fp16", {"batch": (1,)}, ["Build on a machine of this kind"], ["int8", "--batch", "--precision"]),
        ("fp8-fp16", {"workspace_bytes": 10}, ["smaller --workspace"], ["int8", "fp16"]),
        ("fp16", {"target": "server-trt10"}, ["--workspace 512MB"], ["smaller --workspace"]),
    ],
)
def test_only_what_is_not_done_already_is_advised(
    numerics: Numerics, changes: dict[str, Any], told: list[str], untold: list[str]
) -> None:
    text = smaller_text(options(**changes), numerics)
    for each in told:
        assert each in text
    for each in untold:
        assert each not in text
