"""The tracer's table is made once for all graphs of an export, and torch is left as it was."""

from __future__ import annotations

from typing import Any

import pytest

from edgevqa.export.tracer_table import one_table


def test_graphs_share_a_table_while_it_is_open() -> None:
    registration: Any = pytest.importorskip("torch.onnx._internal.exporter._registration")
    registry = registration.ONNXRegistry
    before = vars(registry)["from_torchlib"]
    with one_table():
        first = registry.from_torchlib(opset_version=20)
        assert registry().from_torchlib(opset_version=20) is first
        assert first.functions
        assert registry.from_torchlib(opset_version=18).opset_version == 18
    assert vars(registry)["from_torchlib"] is before
    assert registry.from_torchlib(opset_version=20) is not first


def test_a_torch_without_that_table_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    registration: Any = pytest.importorskip("torch.onnx._internal.exporter._registration")
    monkeypatch.delattr(registration, "ONNXRegistry")
    with one_table():
        assert not hasattr(registration, "ONNXRegistry")
