"""The ways in which other projects' quantisers are used, a row each: defaults, and the best settings that we know of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgevqa.runtime.manifest import Numerics

LINEARS = "Linear layers only, per-channel S8 weights"
TRANSFORMER = "model_type TRANSFORMER (with SmoothQuant)"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to use a tool. `settings` say it in a line; `options` go to the `quantize` function of `module`."""

    name: str
    tool: str
    module: str
    numerics: Numerics
    settings: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def _onnxruntime(name: str, settings: str, numerics: Numerics = "s8-fp32", **options: Any) -> Recipe:
    return Recipe(
        name=f"onnxruntime-{name}",
        tool="onnxruntime",
        module="benchmarks.quantization.static_ort",
        numerics=numerics,
        settings=settings,
        options=options,
    )


def _modelopt(name: str, settings: str, rest: str, **options: Any) -> Recipe:
    return Recipe(
        name=f"modelopt-{name}",
        tool="nvidia-modelopt",
        module="benchmarks.quantization.modelopt_ptq",
        numerics="s8-fp16" if rest == "fp16" else "s8-fp32",
        settings=f"int8, {rest} elsewhere{settings}",
        options={"rest": rest, **options},
    )


def _nncf(name: str, settings: str, **options: Any) -> Recipe:
    return Recipe(
        name=f"nncf-{name}",
        tool="nncf",
        module="benchmarks.quantization.nncf_ptq",
        numerics="u8-fp32",
        settings=f"{settings}, ONNX backend",
        options=options,
    )


RECIPES = (
    _onnxruntime("default", "quantize_static(model, output, reader)"),
    _onnxruntime("prepared", "quant_pre_process, then quantize_static(model, output, reader)", prepare=True),
    _onnxruntime(
        "u8-minmax", f"{LINEARS}, U8 activations, MinMax", "u8-fp32", linears={"unsigned": True, "method": "MinMax"}
    ),
    _onnxruntime(
        "u8-percentile",
        f"{LINEARS}, U8 activations, Percentile",
        "u8-fp32",
        linears={"unsigned": True, "method": "Percentile"},
    ),
    _onnxruntime("s8-minmax", f"{LINEARS}, S8 activations, MinMax", linears={"unsigned": False, "method": "MinMax"}),
    _onnxruntime(
        "s8-percentile", f"{LINEARS}, S8 activations, Percentile", linears={"unsigned": False, "method": "Percentile"}
    ),
    _modelopt("default", "", "fp16"),
    _modelopt("fp32", "", "fp32"),
    _modelopt("no-mha", ", disable_mha_qdq", "fp32", disable_mha_qdq=True),
    _modelopt("no-mha-max", ", disable_mha_qdq, max", "fp32", disable_mha_qdq=True, method="max"),
    _modelopt(
        "linears",
        ", Linear layers only, disable_mha_qdq, dq_only, max",
        "fp32",
        disable_mha_qdq=True,
        method="max",
        linears_only=True,
    ),
    _nncf("default", "nncf.quantize(model, dataset)"),
    _nncf("transformer", TRANSFORMER, transformer=True),
    _nncf("transformer-linears", f"{TRANSFORMER}, Linear layers only", transformer=True, linears_only=True),
)
