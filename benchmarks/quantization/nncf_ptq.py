"""NNCF's post-training quantisation of ONNX graphs: its defaults, and for transformers with SmoothQuant."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import onnx

from benchmarks.quantization.captured import Feed
from benchmarks.quantization.task import Task


def quantize(task: Task, feeds: Sequence[Feed], *, transformer: bool = False, linears_only: bool = False) -> None:
    """`nncf.quantize`; `transformer` names the model type, which turns SmoothQuant on."""
    nncf: Any = importlib.import_module("nncf")  # by name: only this benchmark's environment has it
    model: Any = onnx.load(task.source)
    settings: dict[str, Any] = {"subset_size": len(feeds)}
    if transformer:
        settings["model_type"] = nncf.ModelType.TRANSFORMER
    if linears_only:
        settings["ignored_scope"] = nncf.IgnoredScope(names=task.others, validate=False)
    onnx.save(nncf.quantize(model, nncf.Dataset(feeds), **settings), task.target)
