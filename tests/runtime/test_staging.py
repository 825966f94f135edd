"""What is left beside an output by processes that were killed, and places that cannot be written."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import InputError, UnavailableError
from edgevqa.runtime.staging import FORGOTTEN_S, Staging, check_place


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


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where nothing can be made, for root too."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    (tmp_path / "my bundle").mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    return tmp_path / "my bundle"


def test_a_read_only_output_asks_for_another(read_only: Path) -> None:
    with pytest.raises(InputError, match=r"Read-only file system. Give an output that you may write to"):
        check_place(read_only)


def test_what_is_added_to_in_a_read_only_place_is_to_be_copied(read_only: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_place(read_only, in_place=True)
    assert str(caught.value) == (
        f"{read_only} cannot be added to: a new one is written beside it, in {read_only.parent}, which says: Read-only "
        f"file system. Copy it to a folder that you may write to, and give the copy: cp -r '{read_only}' FOLDER"
    )


def test_a_bundle_in_a_read_only_place_is_to_be_copied(fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be added to: .* Copy it to a folder that you may write to"):
        BundleWriter.extend(fake_bundle).__enter__()


def test_a_disk_that_is_full_while_adding_changes_nothing(fake_bundle: Bundle, tmp_path: Path) -> None:
    def add() -> None:
        with BundleWriter.extend(fake_bundle) as writer:
            writer.add_bytes(b"new", "graphs/fp32/weights.data")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UnavailableError, match="The disk became full"):
        add()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
