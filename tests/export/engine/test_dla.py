"""A DLA computes in FP16 and INT8 alone, and takes one shape: what is refused, and what runs on the GPU instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevqa.export.engine.build import BuiltEngines, build
from edgevqa.export.engine.capabilities import check_dla, graph_options
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import Numerics

Install = Callable[..., Any]
FIXED: Profile = {"x": ShapeRange(min=[1, 3], opt=[1, 3], max=[1, 3])}
MOVING: Profile = {"x": ShapeRange(min=[1, 3], opt=[2, 3], max=[4, 3])}


def options(core: int | None = 0) -> BuildOptions:
    return BuildOptions(target="jetson-orin-jp6", dla_core=core)


@pytest.mark.parametrize("numerics", ["fp32", "s8-fp32", "bf16", "fp8-fp16"])
def test_other_numerics_are_refused(numerics: Numerics) -> None:
    with pytest.raises(InputError, match=f"--dla-core 0: .* FP16 and INT8 alone; variant 'mine' is {numerics}"):
        check_dla(options(), "mine", numerics, {"graph": [FIXED]})
    check_dla(options(None), "mine", numerics, {"graph": [FIXED]})


@pytest.mark.parametrize("numerics", ["fp16", "s8-fp16"])
def test_graphs_of_one_shape_run_on_it(numerics: Numerics) -> None:
    check_dla(options(), "mine", numerics, {"moving": [MOVING], "fixed": [FIXED]})
    with pytest.raises(InputError, match=r"the shapes of every graph here move\. Give one size \(--batch 1\)"):
        check_dla(options(), "mine", numerics, {"moving": [MOVING], "two": [FIXED, FIXED]})


def test_a_graph_whose_shapes_move_is_built_for_the_gpu() -> None:
    assert graph_options(options(1), [FIXED]) == (options(1), [])
    for profiles in ([MOVING], [FIXED, MOVING], [FIXED, FIXED]):
        chosen, told = graph_options(options(1), profiles)
        assert (chosen, len(told)) == (options(None), 1)
        assert "built for the GPU alone: its shapes move" in told[0]
    assert graph_options(options(None), [MOVING]) == (options(None), [])


def test_only_graphs_of_one_shape_are_built_for_the_dla(install: Install, half_bundle: Path) -> None:
    trt = install(dla_cores=2, arch="aarch64")
    built: BuiltEngines = build(
        half_bundle, BuildOptions(target="jetson-orin-jp6", precision="fp16", batch=(1,), dla_core=1)
    )
    assert built.record.dla_core == 1
    devices = dict(zip(built.record.graphs, (told.device for told in trt.builds), strict=True))
    assert devices["vision_trunk"] == "DLA"
    assert devices["vision_fusion"] == devices["question_encoder"] == "GPU", "questions have many lengths"
    for graph, device in devices.items():
        said = any("built for the GPU alone" in line for line in built.warnings.get(graph, []))
        assert said is (device == "GPU"), graph


def test_nothing_is_begun_for_fp32(install: Install, reference_bundle: Path) -> None:
    trt = install(dla_cores=2, arch="aarch64")
    with pytest.raises(InputError, match="variant 'fp32' is fp32"):
        build(reference_bundle, BuildOptions(target="jetson-orin-jp6", batch=(1,), dla_core=0))
    assert not trt.builds
