"""Trace one planned graph to ONNX with torch's dynamo exporter, and check that its contract holds.

transformers.exporters (5.23) traces whole `PreTrainedModel`s and is no help here: it freezes a sample batch of one, writes
fixed axes as names, and knows no graph that runs once an image, a question or a token. The tracer below it is the same.
"""

from __future__ import annotations

import warnings

import onnx_ir as ir
import torch

from edgevqa.export import legacy
from edgevqa.export.passes import clean, quiet
from edgevqa.export.spec import GraphPlan
from edgevqa.export.streaming import bind, placeholders

IR_VERSION = 10  # readers: ONNX Runtime 1.18 and later, TensorRT 10, OpenVINO 2024


def trace(plan: GraphPlan, *, opset: int) -> ir.Model:
    """The graph of `plan` as an onnx_ir model whose large tensors still lie in the torch parameters, or in their file.

    The tracer writes opset 18 and up; 17 is lowered from it (`export/legacy.py`). Raises `RuntimeError` naming the graph
    when the tracer fails, or when inputs or outputs are not those planned.
    """
    with placeholders(plan.module) as streamed:
        traced = _traced(plan, opset=max(opset, legacy.TRACED_OPSET))
    bind(traced.graph, streamed)
    model = clean(traced, plan)
    model.ir_version = IR_VERSION
    model.graph.name = plan.name
    model.producer_name, model.producer_version = "edgevqa", None
    if opset < legacy.TRACED_OPSET:
        legacy.lower(model)
    _check_names(plan, model)
    return model


def _traced(plan: GraphPlan, *, opset: int) -> ir.Model:
    with warnings.catch_warnings(), quiet("torch.onnx", "torch.export", "torch.fx"), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                plan.module.eval(),
                plan.args,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=plan.dynamic_shapes,
                input_names=plan.input_names,
                output_names=plan.output_names,
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # the tracer raises many types; all mean the same to the caller
            raise RuntimeError(f"Graph '{plan.name}' could not be traced at opset {opset}: {error}") from error
    if program is None:
        raise RuntimeError(f"Graph '{plan.name}' could not be traced at opset {opset}.")
    return program.model


def _check_names(plan: GraphPlan, model: ir.Model) -> None:
    for what, planned, found in (
        ("inputs", plan.input_names, [value.name for value in model.graph.inputs]),
        ("outputs", plan.output_names, [value.name for value in model.graph.outputs]),
    ):
        if planned != found:
            raise RuntimeError(f"Graph '{plan.name}' has {what} {found}, planned were {planned}.")
