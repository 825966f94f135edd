"""Where a bundle will run: a table of facts, one row a target, that exporting and building read."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.errors import InputError


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `opset` is what we export by default, `max_opset` the highest that the target reads."""

    name: str
    summary: str
    backend: str
    opset: int
    max_opset: int
    tensorrt: str | None = None
    compute_capability: str | None = None


_ROWS = (
    Target(name="cpu", summary="any CPU, by ONNX Runtime", backend="onnxruntime", opset=20, max_opset=23),
    Target(name="cuda", summary="CUDA GPUs, by ONNX Runtime", backend="onnxruntime", opset=20, max_opset=23),
    Target(name="openvino", summary="Intel and AMD CPUs, by OpenVINO", backend="openvino", opset=20, max_opset=22),
    Target(
        name="jetson-orin-jp6",
        summary="Jetson Orin with JetPack 6.1 to 6.2",
        backend="tensorrt",
        opset=20,
        max_opset=20,
        tensorrt="10.3",
        compute_capability="8.7",
    ),
    Target(
        name="jetson-orin-jp7",
        summary="Jetson Orin with JetPack 7.2",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        tensorrt="10.16",
        compute_capability="8.7",
    ),
    Target(
        name="jetson-thor-jp7",
        summary="Jetson Thor with JetPack 7",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        tensorrt="10.13",
        compute_capability="11.0",
    ),
    Target(
        name="server-trt10",
        summary="server GPUs with TensorRT 10",
        backend="tensorrt",
        opset=20,
        max_opset=20,
        tensorrt="10",
    ),
    Target(
        name="server-trt11",
        summary="server GPUs with TensorRT 11",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        tensorrt="11",
    ),
    Target(
        name="rtx",
        summary="GeForce and RTX GPUs with TensorRT-RTX",
        backend="tensorrt-rtx",
        opset=20,
        max_opset=23,
        tensorrt="1.7",
        compute_capability="8.0",
    ),
)
TARGETS = {row.name: row for row in _ROWS}


def target(name: str) -> Target:
    """The row of `name`. Raises `InputError` naming the targets there are."""
    if name not in TARGETS:
        raise InputError(f"There is no target '{name}'; there are: {', '.join(TARGETS)}.")
    return TARGETS[name]
