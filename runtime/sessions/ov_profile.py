"""OpenVINO's times of every node, with the graph's nodes that each one stands for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.manifest import GraphSpec
from edgevqa.runtime.sessions.base import NodeTime, SessionOptions
from edgevqa.runtime.sessions.ov import OvSession, core

_PRODUCTS = ("FullyConnected", "MatMul")
_FOLDED = ("Add", "Multiply", "Subtract", "Divide", "Convert", "Reshape")
"""What OpenVINO may fold into the product before it, and name the product after."""


class ProfiledOvSession(OvSession):
    """A session that asks for the node times after every run."""

    def __init__(self, path: Path, name: str, spec: GraphSpec, options: SessionOptions) -> None:
        settings = {**options.provider_options, "PERF_COUNT": "YES"}
        super().__init__(path, name, spec, msgspec.structs.replace(options, provider_options=settings))
        self._spent: dict[tuple[str, str], list[float]] = {}
        self._stands_for = _stands_for(self.compiled)
        self._source = {node.get_friendly_name(): node for node in core().read_model(str(path)).get_ordered_ops()}

    def forget_times(self) -> None:
        """Begin anew: what ran before does not count."""
        with self._lock:
            self._spent = {}

    def node_times(self) -> list[NodeTime]:
        """The times since then."""
        return [
            NodeTime(
                nodes=self._stands_for.get(name) or (name,),
                products=tuple(self._products(name, kind)),
                kind=kind,
                run_ms=statistics.median(spent_ms),
                runs=len(spent_ms),
            )
            for (name, kind), spent_ms in self._spent.items()
        ]

    def _infer(self, request: Any) -> None:
        super()._infer(request)
        with self._lock:
            for row in request.get_profiling_info():
                if row.status.name == "EXECUTED":
                    key = (row.node_name, row.node_type)
                    self._spent.setdefault(key, []).append(row.real_time.total_seconds() * 1e3)

    def _products(self, name: str, kind: str) -> Iterator[str]:
        """The matrix products that a node stands for, by the names that they had before anything was fused."""
        if kind.startswith(_PRODUCTS):
            names = (each.partition("/")[0] for each in self._stands_for.get(name) or (name,))
            yield from dict.fromkeys(found for each in names if (found := self._product_before(each)) is not None)

    def _product_before(self, name: str) -> str | None:
        """The name of the matrix product that a node is, or that feeds it across what may be folded into it."""
        node = self._source.get(name)
        while node is not None and node.get_type_name() in _FOLDED:
            before = [port.get_source_output().get_node() for port in node.inputs()]
            node = next((each for each in before if each.get_type_name() in ("MatMul", *_FOLDED)), None)
        return node.get_friendly_name() if node is not None and node.get_type_name() == "MatMul" else None


def _stands_for(compiled: Any) -> dict[str, tuple[str, ...]]:
    """For each node that runs, the nodes of the graph that were fused into it."""
    found: dict[str, tuple[str, ...]] = {}
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        names = told["originalLayersNames"].astype(str) if "originalLayersNames" in told else ""
        found[node.get_friendly_name()] = tuple(name for name in names.split(",") if name)
    return found
