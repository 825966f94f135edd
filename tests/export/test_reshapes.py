"""Reshapes of traced graphs: constant targets, the same values at sizes that were not traced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgevqa.export.spec import GraphPlan
from edgevqa.export.trace import trace

SIZES = ((1, 1), (2, 5), (3, 4))  # batch, length; traced is (2, 3)


class Heads(nn.Module):
    """Heads split, grouped, and merged again, with sizes of two axes in every target."""

    def forward(self, states: Tensor) -> Tensor:
        split = states.unflatten(-1, (4, 2)).transpose(1, 2)
        grouped = split.unflatten(1, (2, 2)).flatten(2, 3) * 2.0
        merged: Tensor = grouped.unflatten(2, (2, -1)).flatten(1, 2).transpose(1, 2).flatten(2)
        return merged


class Sideways(nn.Module):
    """A target with two sizes that the input has elsewhere."""

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        return states.transpose(0, 1).reshape(batch, length, width) + 1.0


def traced(module: nn.Module) -> ir.Model:
    plan = GraphPlan(
        name="toy",
        module=module,
        args=(torch.randn(2, 3, 8),),
        dynamic_shapes=({0: "batch", 1: "length"},),
        input_names=["states"],
        output_names=["out"],
    )
    return trace(plan, opset=20)


@pytest.mark.parametrize("module", [Heads(), Sideways()])
def test_they_compute_what_torch_does_at_every_size(module: nn.Module) -> None:
    session = onnxruntime.InferenceSession(
        ir.to_proto(traced(module)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for batch, length in SIZES:
        states = torch.randn(batch, length, 8)
        (found,) = session.run(None, {"states": states.numpy()})
        np.testing.assert_array_equal(found, module(states).numpy())


def test_targets_are_constant_and_nothing_computes_sizes() -> None:
    graph = traced(Heads()).graph
    kinds = Counter(node.op_type for node in graph)
    assert not {"Shape", "Concat", "Squeeze", "Unsqueeze"} & set(kinds)
    targets = [node.inputs[1] for node in graph if node.op_type == "Reshape"]
    values = [target.const_value for target in targets if target is not None]
    assert [None if value is None else value.numpy().tolist() for value in values] == [
        [0, 0, 4, 2],
        [0, 2, -1, 2],  # of the heads as they were split: two reshapes became one
        [0, 4, -1, 2],
        [0, 0, 8],
    ]


def test_a_target_that_takes_sizes_from_other_places_is_left() -> None:
    (node,) = (node for node in traced(Sideways()).graph if node.op_type == "Reshape")
    target = node.inputs[1]
    assert target is not None
    assert target.const_value is None
