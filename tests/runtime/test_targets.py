"""The table of targets against facts from outside: versions, opsets and GPUs, written down a second time from its sources."""

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


def test_these_are_the_targets() -> None:
    assert set(TARGETS) == set(ROWS)
    assert all(row.name == name for name, row in TARGETS.items())


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_as_it_was_looked_up(name: str) -> None:
    row = target(name)
    facts = (row.tensorrt, row.python, row.opset, row.max_opset, row.compute_capabilities, row.dla)
    assert facts == ROWS[name]


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
        if precision in row.numerics:
            assert row.numerics_of(precision) == row.numerics[precision]
        else:
            with pytest.raises(InputError, match=f"Target '{name}' cannot run {precision}: ") as caught:
                row.numerics_of(precision)
            assert row.cannot[precision] in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (versions, *_) in ROWS.items() if versions])
def test_tensorrt_gets_no_zero_points(name: str) -> None:
    """It takes those of 0 alone, so activations are signed."""
    assert not [each for several in target(name).numerics.values() for each in several if each.startswith("u8")]


@pytest.mark.parametrize("name", ROWS)
def test_fp8_is_for_gpus_that_have_it(name: str) -> None:
    """Tensor cores multiply it from compute capability 8.9 on; ONNX Runtime and OpenVINO run none of its graphs."""
    versions, _, _, _, capabilities, _ = ROWS[name]
    able = bool(versions) and (not capabilities or max(float(each) for each in capabilities) >= 8.9)
    assert ("fp8" in target(name).numerics) == able


def test_a_network_of_tensorrt_8_gets_no_types_of_its_own() -> None:
    """Q/DQ scales in FP16 need opset 19, of which TensorRT 8 reads none; its builder casts floats by itself."""
    assert set(target("jetson-orin-legacy").numerics) == {"fp32"}


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
