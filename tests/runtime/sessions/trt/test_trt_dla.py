"""Engines that were built for a DLA: loaded for their core, refused where it is not there, and never captured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.trt.session import EngineSession

AXES = {"positions": (5, 8, 16)}
PIXELS = {"pixel_values": np.ones((1, 3, 8, 8), np.float32)}


def made(engines: Callable[..., Path], source: Path, core: int | None) -> Path:
    traits = {} if core is None else {"vision_trunk": {"dla_core": core}}
    return engines(source, "jetson-orin-jp6", axes=AXES, traits=traits, record={"dla_core": core})


def runs(path: Path, count: int) -> tuple[int, int]:
    """Launches and replays of so many runs of the trunk on the same shapes."""
    with open_session(Bundle.open(path), "fp32", "vision_trunk", backend="tensorrt") as session:
        assert isinstance(session, EngineSession)
        for _ in range(count):
            session.run(PIXELS)["trunk_states"].numpy()
        return session.traffic.launches, session.traffic.replays


@pytest.mark.parametrize("core", [0, 1])
def test_an_engine_runs_on_the_core_that_it_was_built_for(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, core: int
) -> None:
    """TensorRT takes core 0 unless it is told, and a DLA's work cannot be in a CUDA graph."""
    simulated.modules["tensorrt"].dla_cores = 2
    assert runs(made(engines, toy_bundle, core), 4) == (4, 0)


def test_without_one_launches_are_replayed(simulated: Any, engines: Callable[..., Path], toy_bundle: Path) -> None:
    simulated.modules["tensorrt"].dla_cores = 2
    launches, replays = runs(made(engines, toy_bundle, None), 4)
    assert replays > 0
    assert launches + replays == 4


@pytest.mark.parametrize(("core", "there"), [(0, 0), (1, 1)])
def test_a_core_that_is_not_there_is_told(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, core: int, there: int
) -> None:
    """An Orin Nano has the compute capability of the boards that have some."""
    simulated.modules["tensorrt"].dla_cores = there
    path = made(engines, toy_bundle, core)
    with pytest.raises(
        BundleError, match=rf"built for DLA core {core}; TensorRT finds {there} here\. Build it again"
    ) as caught:
        runs(path, 1)
    assert str(caught.value).endswith(f"edgevqa build {path} --target jetson-orin-jp6 --precision fp32")


def test_an_engine_that_tensorrt_does_not_load_is_built_again_even_if_it_is_whole(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    """A build without --rebuild would keep it as it is."""
    simulated.modules["tensorrt"].dla_cores = 2
    path = engines(toy_bundle, "jetson-orin-jp6", axes=AXES, traits={"vision_trunk": {"dla_core": 1}})
    with pytest.raises(BundleError, match=r"TensorRT cannot load .*another DLA core") as caught:
        runs(path, 1)
    again = f"Build it again here: edgevqa build {path} --target jetson-orin-jp6 --precision fp32 --rebuild"
    assert str(caught.value).endswith(again)
