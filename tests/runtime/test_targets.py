"""The table of targets against what was looked up, written down here a second time from the sources that the table names."""

from __future__ import annotations

from typing import Any

import pytest

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.targets import TARGETS, target

# name: TensorRT, Python of its system TensorRT, opset, highest opset, compute capabilities, DLA
ROWS: dict[str, tuple[tuple[str, ...], str | None, int, int, tuple[str, ...], bool]] = {
    "cpu": ((), None, 20, 23, (), False),
    "cuda": ((), None, 20, 23, (), False),
    "openvino": ((), None, 20, 22, (), False),
    "jetson-orin-legacy": (("8.5", "8.6"), "3.8", 17, 17, ("8.7",), False),
    "jetson-orin-jp6": (("10.3",), "3.10", 20, 20, ("8.7",), True),
    "jetson-orin-jp7": (("10.16",), "3.12", 20, 23, ("8.7",), False),
    "jetson-thor-jp7": (("10.13", "10.16"), "3.12", 20, 23, ("11.0",), False),
    "server-trt10": (("10",), None, 20, 20, (), False),
    "server-trt11": (("11",), None, 20, 23, (), False),
    "rtx": (("1",), None, 20, 23, ("8.0", "8.6", "8.9", "12.0"), False),
}
PARSED = {"8.5": 17, "8.6": 17, "10.3": 20, "10": 20, "10.13": 23, "10.16": 24, "11": 25, "1": 26}
"""The highest opset that each TensorRT's parser reads, where it comes with several versions of the least."""

FLOAT: dict[str, tuple[str, ...]] = {"fp32": ("fp32",), "fp16": ("fp16",)}
# TensorRT takes zero points of 0 alone: signed
SIGNED: dict[str, tuple[str, ...]] = {**FLOAT, "bf16": ("bf16",), "int8": ("s8-fp16",), "mixed": ("s8-fp16",)}
NUMERICS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {**FLOAT, "int8": ("u8-fp32",), "mixed": ("u8-fp32",)},
    "cuda": {**FLOAT, "int8": ("u8-fp32",), "mixed": ("u8-fp32",)},
    "openvino": {**FLOAT, "bf16": ("bf16",), "int8": ("s8-fp32",), "mixed": ("s8-fp32",)},
    "jetson-orin-legacy": {"fp32": ("fp32",)},  # FP16 scales need opset 19, its builder casts floats by itself
    "jetson-orin-jp6": SIGNED,
    "jetson-orin-jp7": SIGNED,
    "jetson-thor-jp7": {**SIGNED, "fp8": ("fp8-fp16",)},
    "server-trt10": {**SIGNED, "fp8": ("fp8-fp16",)},
    "server-trt11": {**SIGNED, "fp8": ("fp8-fp16",)},
    "rtx": {**SIGNED, "fp8": ("fp8-fp16",)},
}
CANNOT: dict[str, dict[str, str]] = {
    "cpu": {"bf16": "use fp32 or int8", "fp8": "use int8", "fp16 speed": "not faster"},
    "cuda": {"bf16": "use fp16", "fp8": "use fp16", "int8 speed": "use a TensorRT target"},
    "openvino": {"fp8": "use int8", "fp16 speed": "not faster"},
    "jetson-orin-legacy": {
        "build": "run the trtexec lines",
        "fp16": "--fp16",
        "int8": "upgrade to JetPack 6.1",
        "mixed": "upgrade to JetPack 6.1",
        "bf16": "--fp16",
        "fp8": "quantise to int8",
        "INT64": "INT32",
        "LayerNormalization": "8.5 lacks",
        "Attention": "MatMul, Softmax, MatMul",
    },
    "jetson-orin-jp6": {"fp8": "quantise to int8", "Attention": "before 10.14"},
    "jetson-orin-jp7": {"fp8": "quantise to int8", "DLA": "runs on the GPU", "Attention": "MatMul, Softmax, MatMul"},
    "jetson-thor-jp7": {"DLA": "Thor has none", "Attention": "MatMul, Softmax, MatMul"},
    "server-trt10": {"fp8 below 8.9": "quantise to int8", "DLA": "runs on the GPU", "Attention": "before 10.14"},
    "server-trt11": {
        "fp8 below 8.9": "quantise to int8",
        "DLA": "runs on the GPU",
        "Attention": "MatMul, Softmax, MatMul",
    },
    "rtx": {
        "fp8 below 8.9": "8.9 and up",
        "FP32 below 8.0": "7.5 takes no FP32 matrix product",
        "DLA": "no desktop GPU",
        "Attention": "MatMul, Softmax, MatMul",
    },
}


def test_these_are_the_targets() -> None:
    assert set(TARGETS) == set(ROWS)
    assert all(row.name == name for name, row in TARGETS.items())


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_as_it_was_looked_up(name: str) -> None:
    row = target(name)
    facts = (row.tensorrt, row.python, row.opset, row.max_opset, row.compute_capabilities, row.dla)
    assert facts == ROWS[name]
    assert row.numerics == NUMERICS[name]


@pytest.mark.parametrize("name", ROWS)
def test_what_it_cannot_do_is_said_with_what_is_done_instead(name: str) -> None:
    row = target(name)
    assert set(row.cannot) == set(CANNOT[name])
    for what, part in CANNOT[name].items():
        assert part in row.cannot[what], what


@pytest.mark.parametrize("name", ROWS)
def test_no_graph_is_newer_than_the_oldest_parser(name: str) -> None:
    row = target(name)
    for version in row.tensorrt:
        assert row.opset <= row.max_opset <= PARSED[version]


@pytest.mark.parametrize("name", ROWS)
def test_a_precision_that_it_lacks_is_refused_with_the_reason(name: str) -> None:
    row = target(name)
    every: list[Any] = ["fp32", "fp16", "bf16", "int8", "mixed", "fp8"]
    for precision in every:
        if precision in NUMERICS[name]:
            assert row.numerics_of(precision) == NUMERICS[name][precision]
        else:
            with pytest.raises(InputError, match=f"Target '{name}' cannot run {precision}: ") as caught:
                row.numerics_of(precision)
            assert CANNOT[name][precision] in str(caught.value)


def test_only_tensorrt_builds_engines() -> None:
    builds = {name: row.flavour for name, row in TARGETS.items() if row.builds_engines}
    assert builds == {
        **dict.fromkeys(
            ("jetson-orin-jp6", "jetson-orin-jp7", "jetson-thor-jp7", "server-trt10", "server-trt11"), "tensorrt"
        ),
        "rtx": "tensorrt-rtx",
    }


def test_an_unknown_target_is_told_the_others() -> None:
    with pytest.raises(InputError, match="no target 'orin'; there are: cpu, cuda, openvino, jetson-orin-legacy"):
        target("orin")
