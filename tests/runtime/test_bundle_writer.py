"""A bundle is whole or absent: overwriting, interruption, full disks, and adding to one that exists."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, InputError, UnavailableError
from edgevqa.runtime.manifest import Manifest

Fill = Callable[[BundleWriter, int], Manifest]
Snapshot = Callable[[Path], dict[str, bytes]]


def fill_and_raise(fill: Fill, error: BaseException) -> Callable[[BundleWriter], object]:
    """The body of an export that dies at its end."""

    def body(writer: BundleWriter) -> None:
        fill(writer, 3000)
        raise error

    return body


def use(writer: BundleWriter, body: Callable[[BundleWriter], object]) -> None:
    with writer:
        body(writer)


def test_nothing_is_at_the_target_before_finish(tmp_path: Path, fill_writer: Fill) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        manifest = fill_writer(writer, 3000)
        assert not (tmp_path / "bundle").exists()
        bundle = writer.finish(manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert bundle.root == tmp_path / "bundle"
    assert bundle.manifest == manifest
    assert all(report.passed for report in bundle.verify())


def test_a_bundle_can_be_read_by_others(fake_bundle: Bundle) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(fake_bundle.root.stat().st_mode) == 0o777 & ~mask


def test_parents_are_made_and_unmade(tmp_path: Path, fill_writer: Fill) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        use(BundleWriter(tmp_path / "a/b/bundle"), fill_and_raise(fill_writer, RuntimeError("expected")))
    assert list(tmp_path.iterdir()) == []
    with BundleWriter(tmp_path / "a/b/bundle") as writer:
        writer.finish(fill_writer(writer, 10))
    Bundle.open(tmp_path / "a/b/bundle").require_files()


def test_existing_output_is_refused_before_anything_is_written(
    fake_bundle: Bundle, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"bundle exists. Give another output folder, or replace it with --overwrite"):
        BundleWriter(fake_bundle.root).__enter__()
    assert snapshot(tmp_path) == before


def test_overwrite_replaces_the_whole_bundle(fake_bundle: Bundle, tmp_path: Path, fill_writer: Fill) -> None:
    (fake_bundle.root / "notes.txt").write_text("old")
    with BundleWriter(fake_bundle.root, overwrite=True) as writer:
        writer.finish(fill_writer(writer, 77))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not (fake_bundle.root / "notes.txt").exists()
    assert (fake_bundle.root / "graphs/fp32/weights.data").stat().st_size == 77


def test_overwrite_keeps_a_link_and_replaces_what_it_points_to(
    fake_bundle: Bundle, tmp_path: Path, fill_writer: Fill
) -> None:
    (tmp_path / "link").symlink_to("bundle")
    with BundleWriter(tmp_path / "link", overwrite=True) as writer:
        writer.finish(fill_writer(writer, 77))
    assert (tmp_path / "link").is_symlink()
    assert (fake_bundle.root / "graphs/fp32/weights.data").stat().st_size == 77


def test_overwrite_takes_nothing_but_bundles(tmp_path: Path, fill_writer: Fill, snapshot: Snapshot) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/manifest.json").write_text('{"name": "somebody else\'s"}')
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"project is not a bundle .*--overwrite replaces nothing else"):
        BundleWriter(tmp_path / "project", overwrite=True).__enter__()
    with pytest.raises(InputError, match=r"file is a file; expected a folder"):
        BundleWriter(tmp_path / "file", overwrite=True).__enter__()
    with pytest.raises(InputError, match=r"cannot be written: Not a directory"):
        BundleWriter(tmp_path / "file/bundle").__enter__()
    with pytest.raises(InputError, match=r"replaces nothing else"):
        BundleWriter("/", overwrite=True).__enter__()
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with BundleWriter(tmp_path / "empty", overwrite=True) as writer:
        writer.finish(fill_writer(writer, 10))


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, fill_writer: Fill) -> None:
    def body(writer: BundleWriter) -> None:
        manifest = fill_writer(writer, 10)
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle/mine").touch()
        writer.finish(manifest)

    with pytest.raises(InputError, match="exists"):
        use(BundleWriter(tmp_path / "bundle"), body)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "mine"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_any_exception_leaves_what_was_there(
    fake_bundle: Bundle,
    tmp_path: Path,
    fill_writer: Fill,
    snapshot: Snapshot,
    error: type[BaseException],
    overwrite: bool,
) -> None:
    before = snapshot(tmp_path)
    target = fake_bundle.root if overwrite else tmp_path / "new"
    with pytest.raises(error, match="expected"):
        use(BundleWriter(target, overwrite=overwrite), fill_and_raise(fill_writer, error("expected")))
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("moment", ["rename", "rmtree", "fsync"])
def test_interruption_while_swapping(
    fake_bundle: Bundle, tmp_path: Path, fill_writer: Fill, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whatever the moment: the old bundle or the new one is there, whole, and nothing else."""
    with BundleWriter(fake_bundle.root, overwrite=True) as writer:
        manifest = fill_writer(writer, 77)
        with monkeypatch.context() as patch:
            _interrupt_at(patch, moment)
            with pytest.raises(KeyboardInterrupt):
                writer.finish(manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert all(report.passed for report in Bundle.open(fake_bundle.root).verify())
    size = (fake_bundle.root / "graphs/fp32/weights.data").stat().st_size
    assert size == (77 if moment == "rmtree" else 3000)


def _interrupt_at(patch: pytest.MonkeyPatch, moment: str) -> None:
    """Interrupt before the rename into place (the one away went through), the first deletion, or the first flush."""
    rename, rmtree = Path.rename, shutil.rmtree
    calls: list[str] = []

    def stop_rename(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise KeyboardInterrupt
        return rename(path, target)

    def stop_rmtree(path: Path, ignore_errors: bool) -> None:
        calls.append(path.name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        rmtree(path, ignore_errors=ignore_errors)

    def stop_fsync(handle: int) -> None:
        raise KeyboardInterrupt

    if moment == "rename":
        patch.setattr(Path, "rename", stop_rename)
    elif moment == "rmtree":
        patch.setattr(shutil, "rmtree", stop_rmtree)
    else:
        patch.setattr(os, "fsync", stop_fsync)


SIGNALLED = """
import os, signal, sys
from edgevqa.runtime.bundle_writer import BundleWriter
with BundleWriter(sys.argv[1], overwrite=True) as writer:
    writer.add_bytes(bytes(5000), "graphs/fp32/weights.data")
    print(os.listdir(writer.root), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("name", ["bundle", "new"])
def test_control_c_in_a_process(fake_bundle: Bundle, tmp_path: Path, snapshot: Snapshot, name: str) -> None:
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT), done.stderr
    assert done.stdout.splitlines() == ["['graphs']"]
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk(tmp_path: Path) -> None:
    """`/dev/full` answers each write with the kernel's own ENOSPC."""

    def body(writer: BundleWriter) -> None:
        path = writer.path("graphs/fp32/weights.data")
        path.symlink_to("/dev/full")
        path.write_bytes(bytes(5000))

    with pytest.raises(UnavailableError, match=r"disk became full.*about 5.0 kB are needed.*free now.*Free some"):
        use(BundleWriter(tmp_path / "a/bundle", needed_bytes=5000), body)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_inside_another_error(tmp_path: Path) -> None:
    """Writers of other packages wrap the error, or give its words alone."""

    def wrapping(writer: BundleWriter) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("serialization failed") from error

    def quoting(writer: BundleWriter) -> None:
        raise ValueError("I/O error: No space left on device (os error 28)")

    for body in (wrapping, quoting):
        with pytest.raises(UnavailableError, match="disk became full"):
            use(BundleWriter(tmp_path / "bundle"), body)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import UnavailableError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with BundleWriter(sys.argv[1], overwrite=True) as writer:
        writer.add_bytes(bytes(5000), "graphs/fp32/a.onnx")
        writer.add_bytes(bytes(50_000), "graphs/fp32/weights.data")
except UnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["bundle", "new"])
def test_file_size_limit_in_a_process(fake_bundle: Bundle, tmp_path: Path, snapshot: Snapshot, name: str) -> None:
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    assert "file-size limit was reached" in done.stdout
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_too_little_space_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"bundle needs 1000.0 PB|bundle needs 1000000.0 TB, but .* has only"):
        BundleWriter(tmp_path / "a/bundle", needed_bytes=10**18).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written() -> None:
    """`/sys` takes no new folders, from nobody."""
    with pytest.raises(InputError, match=r"/sys/bundle cannot be written: .*Give an output that you may write to"):
        BundleWriter("/sys/bundle").__enter__()


def test_permission_errors_about_inputs_are_not_the_outputs(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint.pth"

    def body(writer: BundleWriter) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    with pytest.raises(PermissionError, match="checkpoint"):
        use(BundleWriter(tmp_path / "bundle"), body)


def test_files_are_copied_hashed_and_compared(tmp_path: Path, fill_writer: Fill) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with BundleWriter(tmp_path / "bundle") as writer:
        manifest = fill_writer(writer, 10)
        spec = writer.add_file(tmp_path / "tokenizer.json", "tokenizer.json")
        assert (spec.path, spec.size_bytes) == ("tokenizer.json", 2)
        with pytest.raises(BundleError, match=r"tokenizer.json has 2 bytes .*; the manifest says 14"):
            writer.finish(manifest)
        writer.add_bytes(b'{"model": {}}\n', "tokenizer.json")
        writer.path("graphs/fp32/left-over.onnx").touch()
        with pytest.raises(BundleError, match=r"There but not named: \['graphs/fp32/left-over.onnx'\]"):
            writer.finish(manifest)
        (writer.root / "graphs/fp32/left-over.onnx").rename(writer.root / "graphs/fp32/projector.onnx")
        with pytest.raises(BundleError, match=r"projector.onnx has 0 bytes"):
            writer.finish(manifest)
        (writer.root / "graphs/fp32/projector.onnx").unlink()
        with pytest.raises(BundleError, match=r"Named but missing: \['graphs/fp32/projector.onnx'\]"):
            writer.finish(manifest)
        with pytest.raises(InputError, match=r"nowhere cannot be read"):
            writer.add_file(tmp_path / "nowhere", "x")
        for name in ("../outside", "/outside"):
            with pytest.raises(BundleError, match="expected a path inside the bundle"):
                writer.path(name)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_file_changed_after_its_description_is_read_again(tmp_path: Path, fill_writer: Fill) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        manifest = fill_writer(writer, 10)
        path = writer.root / "graphs/fp32/weights.data"
        path.write_bytes(bytes(10))
        os.utime(path, (1, 1))
        with pytest.raises(BundleError, match=r"weights.data has 10 bytes"):
            writer.finish(manifest)


def without_fp16(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, variants={"fp32": manifest.variants["fp32"]})


def test_extending_shares_files_and_swaps(fake_bundle: Bundle, tmp_path: Path) -> None:
    untouched = (fake_bundle.root / "graphs/fp32/projector.onnx").stat()
    with BundleWriter.extend(fake_bundle) as writer:
        spec = writer.add_bytes(b"new tokenizer", "tokenizer.json")
        assert (fake_bundle.root / "tokenizer.json").read_bytes() == b'{"model": {}}\n'
        text = fake_bundle.manifest.text
        assert text is not None
        manifest = msgspec.structs.replace(
            without_fp16(fake_bundle.manifest), text=msgspec.structs.replace(text, tokenizer=spec)
        )
        extended = writer.finish(manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (fake_bundle.root / "graphs/fp32/projector.onnx").stat().st_ino == untouched.st_ino
    assert not (fake_bundle.root / "graphs/fp16/weights.data").exists()
    assert {report.status for report in extended.verify()} == {"ok"}


def test_extending_without_hard_links(fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with BundleWriter.extend(fake_bundle) as writer:
        extended = writer.finish(without_fp16(fake_bundle.manifest))
    assert all(report.passed for report in extended.verify())


def test_a_failed_extension_changes_nothing(fake_bundle: Bundle, tmp_path: Path, snapshot: Snapshot) -> None:
    before = snapshot(tmp_path)

    def body(writer: BundleWriter) -> None:
        writer.path("graphs/fp32/weights.data").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use(BundleWriter.extend(fake_bundle), body)
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_bundle_is_not_extended(fake_bundle: Bundle, tmp_path: Path) -> None:
    (fake_bundle.root / "graphs/fp16/weights.data").write_bytes(bytes(3000))
    with pytest.raises(BundleError, match=r"fp16/weights.data has SHA-256"):
        BundleWriter.extend(fake_bundle).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_two_extensions_at_once_do_not_lose_one(fake_bundle: Bundle) -> None:
    with (
        BundleWriter.extend(fake_bundle) as late,
        BundleWriter.extend(Bundle.open(fake_bundle.root)) as early,
    ):
        early.finish(without_fp16(fake_bundle.manifest))
        with pytest.raises(BundleError, match=r"changed by another process meanwhile. Run the command again"):
            late.finish(fake_bundle.manifest)
    assert list(Bundle.open(fake_bundle.root).manifest.variants) == ["fp32"]
