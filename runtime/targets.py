"""Where a bundle will run: a table of facts, one row a target, that exporting, quantising and building read.

Sources: TensorRT's release notes and operator tables (8.5 to 11.4), onnx-tensorrt's operators.md by branch, JetPack's package
lists, and TensorRT-RTX 1.7.1 itself, which was asked on a CPU.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import Numerics, Precision

Flavour = Literal["tensorrt", "tensorrt-rtx"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One row.

    `opset` is what we export by default, `max_opset` the highest that the target reads. `tensorrt` lists the versions
    that it comes with, `python` the interpreter of its system TensorRT. `compute_capabilities` are those that engines
    are built for where no GPU is asked; empty means that of the GPU at hand. `numerics` gives, for each precision that
    works, how its variant is written, the best first; `cannot` says what does not work, and what is done instead.
    """

    name: str
    summary: str
    backend: str
    opset: int
    max_opset: int
    numerics: dict[Precision, tuple[Numerics, ...]]
    cannot: dict[str, str]
    flavour: Flavour | None = None
    tensorrt: tuple[str, ...] = ()
    python: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    dla: bool = False

    @property
    def builds_engines(self) -> bool:
        """Whether `edgevqa build` can make engines for it."""
        return self.flavour is not None

    def numerics_of(self, precision: Precision) -> tuple[Numerics, ...]:
        """How variants of `precision` are written. Raises `InputError` saying why not, and what to use instead."""
        if precision in self.numerics:
            return self.numerics[precision]
        reason = self.cannot.get(precision, "it has no such arithmetic")
        raise InputError(f"Target '{self.name}' cannot run {precision}: {reason}. It runs {', '.join(self.numerics)}.")


_CPU: dict[Precision, tuple[Numerics, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("u8-fp32",),
    "mixed": ("u8-fp32",),
}
_OPENVINO: dict[Precision, tuple[Numerics, ...]] = {
    **_CPU,
    "bf16": ("bf16",),
    "int8": ("s8-fp32",),
    "mixed": ("s8-fp32",),
}
_TENSORRT: dict[Precision, tuple[Numerics, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("s8-fp16",),
    "mixed": ("s8-fp16",),
}
_WITH_FP8: dict[Precision, tuple[Numerics, ...]] = {**_TENSORRT, "fp8": ("fp8-fp16",)}
_LEGACY: dict[Precision, tuple[Numerics, ...]] = {"fp32": ("fp32",)}

_NO_FP8_ORIN = "Orin's GPU (compute capability 8.7) has no FP8; quantise to int8"
_NO_ATTENTION = "TensorRT before 10.14 has no Attention operator; attention is written as MatMul, Softmax, MatMul"
_NO_DLA = "this TensorRT drives no DLA; everything runs on the GPU"
_PLAIN_ATTENTION = "our graphs write it as MatMul, Softmax, MatMul, which the builder fuses in FP16"

_ROWS = (
    Target(
        name="cpu",
        summary="any CPU, by ONNX Runtime",
        backend="onnxruntime",
        opset=20,
        max_opset=23,
        numerics=_CPU,
        cannot={
            "bf16": "ONNX Runtime has no BF16 kernels for CPUs; use fp32 or int8, or target openvino",
            "fp8": "CPUs have no FP8 arithmetic; use int8",
            "fp16 speed": "CPUs compute FP16 in FP32 and round only what is stored: not faster, and never overflowing",
        },
    ),
    Target(
        name="cuda",
        summary="CUDA GPUs, by ONNX Runtime",
        backend="ort-cuda",
        opset=20,
        max_opset=23,
        numerics={"fp32": ("fp32",), "fp16": ("fp16",), "int8": ("u8-fp32",), "mixed": ("u8-fp32",)},
        cannot={
            "bf16": "ONNX Runtime's CUDA kernels do not cover it; use fp16",
            "fp8": "ONNX Runtime's CUDA kernels do not cover it; use fp16",
            "int8 speed": "ONNX Runtime's CUDA kernels compute Q/DQ layers in floating point; use a TensorRT target",
        },
    ),
    Target(
        name="openvino",
        summary="Intel and AMD CPUs, by OpenVINO",
        backend="openvino",
        opset=20,
        max_opset=22,
        numerics=_OPENVINO,
        cannot={
            "fp8": "CPUs have no FP8 arithmetic; use int8",
            "fp16 speed": "CPUs without AVX512-FP16 compute FP16 in FP32: not faster, and never overflowing",
        },
    ),
    Target(
        name="jetson-orin-legacy",
        summary="Jetson Orin with JetPack 5 or 6.0: opset-17 graphs and trtexec lines; upgrade to JetPack 6.1",
        backend="trtexec",
        opset=17,
        max_opset=17,
        numerics=_LEGACY,
        tensorrt=("8.5", "8.6"),
        python="3.8",
        compute_capabilities=("8.7",),
        cannot={
            "build": "TensorRT 8 cannot type our Q/DQ networks strongly: run the trtexec lines that 'edgevqa build' prints",
            "fp16": "its builder casts by itself: the picture's trtexec lines say --fp16; language models overflow in it",
            "int8": "FP16 scales need opset 19; upgrade to JetPack 6.1 or later",
            "mixed": "FP16 scales need opset 19; upgrade to JetPack 6.1 or later",
            "bf16": "TensorRT 8 has no BF16; the picture's trtexec lines say --fp16",
            "fp8": _NO_FP8_ORIN,
            "INT64": "the parser turns it into INT32",
            "LayerNormalization": "TensorRT 8.5 lacks the operator; it is there from 8.6",
            "Attention": _NO_ATTENTION,
        },
    ),
    Target(
        name="jetson-orin-jp6",
        summary="Jetson Orin with JetPack 6.1 to 6.2",
        backend="tensorrt",
        opset=20,
        max_opset=20,
        numerics=_TENSORRT,
        flavour="tensorrt",
        tensorrt=("10.3",),
        python="3.10",
        compute_capabilities=("8.7",),
        dla=True,
        cannot={"fp8": _NO_FP8_ORIN, "Attention": _NO_ATTENTION},
    ),
    Target(
        name="jetson-orin-jp7",
        summary="Jetson Orin with JetPack 7.2",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        numerics=_TENSORRT,
        flavour="tensorrt",
        tensorrt=("10.16",),
        python="3.12",
        compute_capabilities=("8.7",),
        cannot={"fp8": _NO_FP8_ORIN, "DLA": _NO_DLA, "Attention": _PLAIN_ATTENTION},
    ),
    Target(
        name="jetson-thor-jp7",
        summary="Jetson Thor with JetPack 7",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        numerics=_WITH_FP8,
        flavour="tensorrt",
        tensorrt=("10.13", "10.16"),
        python="3.12",
        compute_capabilities=("11.0",),
        cannot={"DLA": "Thor has none; everything runs on the GPU", "Attention": _PLAIN_ATTENTION},
    ),
    Target(
        name="server-trt10",
        summary="server GPUs with TensorRT 10.3 to 10.16",
        backend="tensorrt",
        opset=20,
        max_opset=20,
        numerics=_WITH_FP8,
        flavour="tensorrt",
        tensorrt=("10",),
        cannot={
            "fp8 below 8.9": "GPUs before compute capability 8.9 have no FP8; quantise to int8",
            "DLA": _NO_DLA,
            "Attention": _NO_ATTENTION,
        },
    ),
    Target(
        name="server-trt11",
        summary="server GPUs with TensorRT 11",
        backend="tensorrt",
        opset=20,
        max_opset=23,
        numerics=_WITH_FP8,
        flavour="tensorrt",
        tensorrt=("11",),
        cannot={
            "fp8 below 8.9": "GPUs before compute capability 8.9 have no FP8; quantise to int8",
            "DLA": _NO_DLA,
            "Attention": _PLAIN_ATTENTION,
        },
    ),
    Target(
        name="rtx",
        summary="GeForce and RTX GPUs with TensorRT-RTX; engines are built without a GPU",
        backend="tensorrt-rtx",
        opset=20,
        max_opset=23,
        numerics=_WITH_FP8,
        flavour="tensorrt-rtx",
        tensorrt=("1",),
        compute_capabilities=("8.0", "8.6", "8.9", "12.0"),
        cannot={
            "fp8 below 8.9": "the build names compute capabilities 8.9 and up alone",
            "FP32 below 8.0": "compute capability 7.5 takes no FP32 matrix product; it is refused where one is left",
            "DLA": "no desktop GPU has one",
            "Attention": "the FP32 operator has no kernel; our graphs write MatMul, Softmax, MatMul",
        },
    ),
)
TARGETS = {row.name: row for row in _ROWS}


def target(name: str) -> Target:
    """The row of `name`. Raises `InputError` naming the targets there are."""
    if name not in TARGETS:
        raise InputError(f"There is no target '{name}'; there are: {', '.join(TARGETS)}.")
    return TARGETS[name]
