"""What is ONNX Runtime's own: the trace that profiling leaves, and how outputs travel."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import ProfiledSession, SessionOptions
from edgevqa.runtime.sessions.ort import OrtTensor

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


def test_outputs_are_ort_values(toy_bundle: Path) -> None:
    with open_session(Bundle.open(toy_bundle), "fp32", "vision_trunk", backend="onnxruntime") as session:
        assert isinstance(session.run(TRUNK)["trunk_states"], OrtTensor)


def test_profiling_leaves_no_file(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = SessionOptions(profile=True)
    for asked in (True, False):
        with open_session(
            Bundle.open(toy_bundle), "fp32", "vision_trunk", backend="onnxruntime", options=options
        ) as session:
            session.run(TRUNK)
            assert list(tmp_path.iterdir())
            if asked:
                assert isinstance(session, ProfiledSession)
                assert session.node_times()
        assert list(tmp_path.iterdir()) == []
