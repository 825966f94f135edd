"""NVIDIA ModelOpt's ONNX post-training quantisation: its default INT8, and without Q/DQ in attention."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.quantization.captured import Feed
from benchmarks.quantization.static_ort import Feeds
from benchmarks.quantization.task import Task


def quantize(
    task: Task,
    feeds: Sequence[Feed],
    *,
    rest: str = "fp16",
    disable_mha_qdq: bool = False,
    method: str | None = None,
    linears_only: bool = False,
) -> None:
    """INT8 with everything else in `rest`: fp16, the default, or fp32. `linears_only` also stores weights as integers."""
    tool: Any = importlib.import_module("modelopt.onnx.quantization")  # only this benchmark's environment has it
    tool.quantize(
        task.source,
        quantize_mode="int8",
        calibration_data_reader=Feeds(feeds),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype=rest,
        disable_mha_qdq=disable_mha_qdq,
        output_path=task.target,
        log_level="ERROR",
        **({"nodes_to_exclude": [re.escape(name) for name in task.others], "dq_only": True} if linears_only else {}),
    )
