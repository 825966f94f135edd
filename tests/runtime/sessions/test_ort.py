"""What is ONNX Runtime's own: the trace that profiling leaves, and how outputs travel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Array, ProfiledSession, SessionOptions
from edgevqa.runtime.sessions.ort import HostTensor, host_array

TRUNK = {"pixel_values": np.ones((2, 3, 8, 8), dtype=np.float32)}


def test_what_one_graph_gave_the_next_one_reads_where_it_lies(toy_bundle: Path) -> None:
    with open_session(Bundle.open(toy_bundle), "fp32", "vision_trunk", backend="onnxruntime") as session:
        found = session.run(TRUNK)["trunk_states"]
    assert isinstance(found, HostTensor)
    assert host_array(found) is found.array
    assert found.nbytes == found.array.nbytes > 0
    owned = found.numpy()
    owned += 1
    assert not np.shares_memory(owned, found.array)
    assert not np.array_equal(owned, found.array)


@pytest.mark.parametrize("give", [lambda array: array.T, lambda array: array.T.astype(">f4")])
def test_arrays_that_lie_otherwise_are_copied(give: Callable[[Array], Array]) -> None:
    given = give(np.arange(6, dtype=np.float32).reshape(2, 3))
    read = host_array(given)
    assert read.flags.c_contiguous
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, given)


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
