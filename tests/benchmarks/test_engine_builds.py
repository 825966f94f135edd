"""What the record of engine builds says of the model, from which builds of other models are estimated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle

ROOT = Path(__file__).parents[2]


def test_the_size_of_every_float32_graph_is_written(reference_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.engine_builds import model_of

    bundle = Bundle.open(reference_bundle)
    written = model_of(bundle)
    assert written["source"] == bundle.manifest.source.id
    graphs = bundle.manifest.variants["fp32"].graphs
    assert {name: sizes["parameters"] for name, sizes in written["graphs"].items()} == {
        name: graph.parameters for name, graph in graphs.items()
    }
    assert all(written["graphs"][name]["operators"] == sum(graph.nodes.values()) for name, graph in graphs.items())


@pytest.mark.parametrize("name", ["engine_builds", "engine_builds_large"])
def test_every_engine_of_the_record_has_its_graphs_size(name: str) -> None:
    written = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    assert sum(sizes["parameters"] for sizes in written["model"]["graphs"].values()) > written["model"]["parameters"]
    for row in written["rows"]:
        assert set(row["graphs"]) == set(written["model"]["graphs"])
