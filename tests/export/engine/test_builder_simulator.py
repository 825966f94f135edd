"""The builder simulator refuses what TensorRT refuses; where TensorRT-RTX is installed, the two are asked the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from edgevqa.export.engine import child

Install = Callable[..., Any]


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.tensorrt)])
def trt(request: pytest.FixtureRequest, install: Install) -> Any:
    """TensorRT-RTX, simulated and real."""
    if request.param == "simulated":
        return install("tensorrt_rtx", (1, 7, 1, 116))
    pytest.importorskip("tensorrt_rtx")
    return importlib.import_module("tensorrt_rtx")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nonsense", 1, AttributeError),
        ("workspace", 1, AttributeError),
        ("builder_optimization_level", "3", TypeError),
        ("hardware_compatibility_level", 1, TypeError),
        ("default_device_type", 1, TypeError),
        ("profiling_verbosity", 1, TypeError),
        ("progress_monitor", 3, TypeError),
        ("DLA_core", "0", TypeError),
    ],
)
def test_wrong_attributes_are_refused(trt: Any, name: str, value: Any, error: type[Exception]) -> None:
    config = trt.Builder(child.make_logger(trt)).create_builder_config()
    with pytest.raises(error):
        setattr(config, name, value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trt, config: config.set_flag("TF32"),
        lambda trt, config: config.set_flag(1),
        lambda trt, config: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, "1"),
        lambda trt, config: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, -1),
        lambda trt, config: config.create_timing_cache("text"),
        lambda trt, config: config.add_optimization_profile({}),
    ],
)
def test_wrong_arguments_are_refused(trt: Any, wrong: Callable[[Any, Any], None]) -> None:
    config = trt.Builder(child.make_logger(trt)).create_builder_config()
    with pytest.raises(TypeError):
        wrong(trt, config)


def test_profiles_are_checked_and_read_back(trt: Any) -> None:
    builder = trt.Builder(child.make_logger(trt))
    config = builder.create_builder_config()
    good, wrong = builder.create_optimization_profile(), builder.create_optimization_profile()
    good.set_shape("x", (1, 3), (2, 3), (4, 3))
    wrong.set_shape("x", (4, 3), (2, 3), (1, 3))
    assert [tuple(side) for side in good.get_shape("x")] == [(1, 3), (2, 3), (4, 3)]
    assert [config.add_optimization_profile(profile) for profile in (good, wrong, good)] == [0, -1, 1]
    assert config.num_optimization_profiles == 2


def test_a_network_without_an_output_is_not_built(trt: Any) -> None:
    logger = child.make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert any("must have at least one output" in line for line in logger.errors)
    assert builder.create_network(1 << 7) is None, "a flag that is not there"


def test_what_is_set_by_itself(trt: Any) -> None:
    config = trt.Builder(child.make_logger(trt)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert config.DLA_core == -1
    config.builder_optimization_level = 5
    config.default_device_type = trt.DeviceType.DLA
    assert config.builder_optimization_level == 5


@pytest.mark.parametrize(
    ("version", "lacks", "has"),
    [
        ((8, 5, 2, 2), ("VERSION_COMPATIBLE", "STRIP_PLAN"), ("FP16", "TF32")),
        ((8, 6, 2, 3), ("STRIP_PLAN",), ("VERSION_COMPATIBLE",)),
        ((10, 3, 0, 30), (), ("FP16", "INT8", "STRIP_PLAN", "VERSION_COMPATIBLE")),
        ((11, 4, 0, 1), ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"), ("STRIP_PLAN", "VERSION_COMPATIBLE", "TF32")),
    ],
)
def test_each_version_has_its_flags(
    install: Install, version: Any, lacks: tuple[str, ...], has: tuple[str, ...]
) -> None:
    trt = install("tensorrt", version)
    assert [name for name in (*lacks, *has) if hasattr(trt.BuilderFlag, name)] == list(has)
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") is (version < (11,))
    assert hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY") is (version >= (10, 9))
    config = trt.Builder(child.make_logger(trt)).create_builder_config()
    assert not hasattr(trt, "ComputeCapability"), "TensorRT builds for the GPU at hand"
    with pytest.raises(AttributeError):
        config.num_compute_capabilities = 1
