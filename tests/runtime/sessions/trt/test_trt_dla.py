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
    with pytest.raises(BundleError, match=rf"built for DLA core {core}; TensorRT finds {there} here\. Build it again"):
        runs(made(engines, toy_bundle, core), 1)
