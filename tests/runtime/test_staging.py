"""What is left beside an output by processes that were killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgevqa.runtime.staging import FORGOTTEN_S, Staging


def age(path: Path, seconds: float) -> None:
    """Let the file or folder, and all below it, be written so long ago."""
    then = time.time() - seconds
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then))


@pytest.fixture
def partials(tmp_path: Path) -> dict[str, Path]:
    """A folder that was forgotten, one that is being written to, and another output's."""
    found = {name: tmp_path / f".{name}" for name in ("out.partial-0a", "out.partial-0b", "other.partial-0c")}
    for folder in found.values():
        (folder / "graphs").mkdir(parents=True)
        (folder / "graphs" / "a.onnx").write_bytes(b"a")
        age(folder, FORGOTTEN_S + 60)
    (found["out.partial-0b"] / "graphs" / "b.onnx").write_bytes(b"b")
    return found


def test_what_a_killed_process_left_a_day_ago_is_removed(tmp_path: Path, partials: dict[str, Path]) -> None:
    with Staging(tmp_path / "out") as staging:
        staging.partial.mkdir()
        staging.commit()
    assert not partials["out.partial-0a"].exists()
    assert partials["out.partial-0b"].is_dir(), "another process may be at work in it"
    assert partials["other.partial-0c"].is_dir()
    assert (tmp_path / "out").is_dir()


def test_files_that_vanish_meanwhile_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-0d").symlink_to(tmp_path / "nowhere")
    with Staging(tmp_path / "out.txt") as staging:
        staging.partial.write_text("whole")
        staging.commit()
    assert (tmp_path / "out.txt").read_text() == "whole"
