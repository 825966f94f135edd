"""A calibrated bundle that the tests of quantising share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def calibrated(reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The reference model, calibrated on a few samples, once a session. Copy it before you add to it."""
    from edgevqa.calibration.observation.run import CalibrateOptions, calibrate

    path = tmp_path_factory.mktemp("calibrated") / "reference.bundle"
    shutil.copytree(reference_bundle, path)
    return calibrate(path, CalibrateOptions(data="scenes:3:200", samples=24, threads=1)).bundle
