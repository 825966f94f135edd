"""Several processes that add to one bundle at once: one wins, the others are refused, nothing is lost in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgevqa.runtime import staging
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.manifest import Manifest

Fill = Callable[[BundleWriter, int], Manifest]


def only(bundle: Bundle, variant: str) -> Manifest:
    return msgspec.structs.replace(bundle.manifest, variants={variant: bundle.variant(variant)})


def test_a_change_while_files_are_flushed_is_not_lost(fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes seconds for large bundles; the other process comes to its end within it."""
    other, sync = Bundle.open(fake_bundle.root), staging.sync

    def slow(path: Path) -> None:
        sync(path)
        monkeypatch.setattr(staging, "sync", sync)
        with BundleWriter.extend(other) as early:
            early.finish(only(other, "fp16"))

    with BundleWriter.extend(fake_bundle) as late:
        monkeypatch.setattr(staging, "sync", slow)
        with pytest.raises(BundleError, match=r"changed by another process meanwhile. Run the command again"):
            late.finish(only(fake_bundle, "fp32"))
    assert list(Bundle.open(fake_bundle.root).manifest.variants) == ["fp16"]
    assert [path.name for path in fake_bundle.root.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("damage", [False, True])
def test_a_change_since_the_bundle_was_opened_is_not_lost(fake_bundle: Bundle, damage: bool) -> None:
    """Calibrating takes minutes between opening the bundle and writing; files of its own may be gone by then."""
    other = Bundle.open(fake_bundle.root)
    with BundleWriter.extend(other) as early:
        manifest = only(other, "fp16")
        if damage:
            shared = next(iter(set(fake_bundle.manifest.files()) & set(manifest.files())))
            early.path(shared.path).write_bytes(b"other numbers")
            told = msgspec.json.encode(manifest).replace(
                msgspec.json.encode(shared), msgspec.json.encode(early.describe(shared.path))
            )
            manifest = msgspec.json.decode(told, type=Manifest)
        early.finish(manifest)
    with (
        pytest.raises(BundleError, match=r"changed by another process meanwhile. Run the command again"),
        BundleWriter.extend(fake_bundle),
    ):
        pass
    found = Bundle.open(fake_bundle.root)
    assert list(found.manifest.variants) == ["fp16"]
    assert all(report.passed for report in found.verify())


def test_what_another_process_exported_meanwhile_stays(
    tmp_path: Path, fill_writer: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = staging.sync

    def slow(path: Path) -> None:
        sync(path)
        monkeypatch.setattr(staging, "sync", sync)
        with BundleWriter(tmp_path / "bundle") as early:
            early.finish(fill_writer(early, 77))

    with BundleWriter(tmp_path / "bundle") as late:
        manifest = fill_writer(late, 55)
        monkeypatch.setattr(staging, "sync", slow)
        with pytest.raises(InputError, match=r"bundle exists. Give another output folder"):
            late.finish(manifest)
    assert (tmp_path / "bundle/graphs/fp32/weights.data").stat().st_size == 77


WRITER = """
import sys, time
from pathlib import Path
import msgspec
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.staging import Staging

put = Staging._put_in_place
def slowly(self):
    time.sleep(0.5)
    put(self)
Staging._put_in_place = slowly
bundle = Bundle.open(sys.argv[1])
with BundleWriter.extend(bundle) as writer:
    print("entered", flush=True)
    sys.stdin.readline()
    manifest = msgspec.structs.replace(bundle.manifest, model={"by": sys.argv[2]})
    writer.finish(manifest)
"""


def start(root: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root), str(number)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_of_processes_at_once_one_wins(fake_bundle: Bundle) -> None:
    """They all check before the first renames, unless a lock makes the check and the rename one step."""
    writers = [start(fake_bundle.root, number) for number in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "entered\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    errors = [writer.communicate()[1] for writer in writers]
    won = [number for number, writer in enumerate(writers) if writer.returncode == 0]
    assert len(won) == 1, errors
    assert "was changed by another process meanwhile" in errors[1 - won[0]]
    found = Bundle.open(fake_bundle.root)
    assert found.manifest.model == {"by": str(won[0])}
    assert all(report.passed for report in found.verify())
    assert [path.name for path in fake_bundle.root.parent.iterdir()] == ["bundle"]
