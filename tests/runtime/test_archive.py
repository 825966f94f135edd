"""A packed bundle: the same bytes each time, and nothing but a whole bundle comes out."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgevqa.runtime.archive import pack, unpack
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, InputError, UnavailableError
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.staging import refuse_place

Snapshot = Callable[[Path], dict[str, bytes]]
Member = tuple[tarfile.TarInfo, bytes]
WEIGHTS = "graphs/fp32/weights.data"


@pytest.fixture
def packed(fake_bundle: Bundle, tmp_path: Path) -> Path:
    """The fake bundle as one file, alone in a folder."""
    (tmp_path / "board").mkdir()
    return pack(fake_bundle, tmp_path / "board" / "bundle.edgevqa.tar")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def members(file: Path) -> list[Member]:
    found: list[Member] = []
    with tarfile.open(file) as tar:
        for info in tar:
            stream = tar.extractfile(info)
            found.append((info, b"" if stream is None else stream.read()))
    return found


def rewrite(file: Path, entries: list[Member]) -> None:
    with tarfile.open(file, "w") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))


def entry(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    return info, data


def assert_refused(file: Path, message: str) -> None:
    """Unpacking fails with the message and leaves the folder as it was."""
    before = names(file.parent)
    with pytest.raises(BundleError, match=message):
        unpack(file, file.parent / "out")
    assert names(file.parent) == before


def test_there_and_back(fake_bundle: Bundle, packed: Path, snapshot: Snapshot) -> None:
    (fake_bundle.root / "notes.txt").write_text("not named, not packed")
    unpacked = unpack(packed, packed.parent / "out")
    assert snapshot(unpacked.root) == {k: v for k, v in snapshot(fake_bundle.root).items() if k != "notes.txt"}
    assert all(report.passed for report in unpacked.verify())


def test_the_same_bundle_gives_the_same_bytes(
    fake_bundle: Bundle, packed: Path, tmp_path: Path, fill_writer: Callable[[BundleWriter, int], Manifest]
) -> None:
    with BundleWriter(tmp_path / "other-name") as writer:
        again = writer.finish(fill_writer(writer, 3000))
    for spec in again.files():
        os.utime(again.root / spec.path, (1, 1))
        (again.root / spec.path).chmod(0o600)
    assert pack(again, tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    infos = [info for info, _ in members(packed)]
    assert [info.name for info in infos][:3] == ["manifest.json", "manifest.sha256", "graphs/fp16/projector.onnx"]
    assert {(info.uid, info.gid, info.uname, info.gname, info.mtime, info.mode) for info in infos} == {
        (0, 0, "", "", 0, 0o644)
    }


def test_existing_outputs(fake_bundle: Bundle, packed: Path, snapshot: Snapshot) -> None:
    with pytest.raises(InputError, match=r"bundle.edgevqa.tar exists. Give another output file, or .*--overwrite"):
        pack(fake_bundle, packed)
    pack(fake_bundle, packed, overwrite=True)
    with pytest.raises(InputError, match=r"is a folder; expected the name of a file"):
        pack(fake_bundle, packed.parent, overwrite=True)
    before = snapshot(fake_bundle.root)
    with pytest.raises(InputError, match=r"bundle exists. Give another output folder"):
        unpack(packed, fake_bundle.root)
    (fake_bundle.root / WEIGHTS).unlink()
    unpack(packed, fake_bundle.root, overwrite=True)
    assert snapshot(fake_bundle.root) == before
    (packed.parent / "mine").mkdir()
    (packed.parent / "mine/file").touch()
    with pytest.raises(InputError, match=r"mine is not a bundle"):
        unpack(packed, packed.parent / "mine", overwrite=True)


def test_a_damaged_bundle_is_not_packed(fake_bundle: Bundle, tmp_path: Path) -> None:
    (fake_bundle.root / WEIGHTS).write_bytes(bytes(3000))
    with pytest.raises(BundleError, match=r"weights.data does not have the hash of the manifest"):
        pack(fake_bundle, tmp_path / "out.tar")
    assert names(tmp_path) == ["bundle"]


def test_files_that_are_no_packed_bundle(packed: Path) -> None:
    file = packed.parent / "file"
    assert_refused(file, r"file does not exist; expected a file made by 'edgevqa bundle pack'")
    for data in (b"", b"x", b"x" * 10_000, b"PK\3\4" + bytes(2000), bytes(20_000)):
        file.write_bytes(data)
        assert_refused(file, r"file is not a packed bundle")
    rewrite(file, [entry("picture.png", b"x")])
    assert_refused(file, r"'picture.png' is where the file manifest.json was expected")
    assert_refused(file.parent / ".." / "board", r"is no regular file")


def test_any_cut_is_noticed(packed: Path) -> None:
    """Cut at each place where one tar block ends, and within blocks."""
    data = packed.read_bytes()
    file = packed.parent / "cut.tar"
    last = data.rindex(b"tokenizer.json") + 512  # the header of the last file; its content and the padding follow
    for length in [*range(0, last, 512), *range(100, last, 1700)]:
        file.write_bytes(data[:length])
        assert_refused(file, r"was cut off|is not a packed bundle")
    file.write_bytes(data[: last + 512])
    unpack(file, packed.parent / "whole")  # the padding alone is no loss


def test_any_changed_byte_of_content_is_noticed(packed: Path) -> None:
    data = packed.read_bytes()
    file = packed.parent / "changed.tar"
    needles = [content for _, content in members(packed) if content]
    for content in needles:
        place = data.index(content[:200]) + len(content) // 2
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert_refused(file, r"SHA-256|manifest")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../outside", tarfile.REGTYPE, r"holds '../outside', unknown to its manifest"),
        ("/tmp/outside", tarfile.REGTYPE, r"unknown to its manifest"),
        ("graphs/extra.onnx", tarfile.REGTYPE, r"unknown to its manifest"),
        (WEIGHTS, tarfile.REGTYPE, r"unknown to its manifest or a second time"),
        ("manifest.json", tarfile.REGTYPE, r"unknown to its manifest"),
        ("link", tarfile.SYMTYPE, r"unknown to its manifest"),
    ],
)
def test_members_that_do_not_belong(packed: Path, name: str, kind: bytes, message: str) -> None:
    rewrite(packed, [*members(packed), entry(name, b"x", kind)])
    assert_refused(packed, message)
    assert not (packed.parent.parent / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_place_of_files(packed: Path, kind: bytes) -> None:
    entries = members(packed)
    for info, _ in entries:
        if info.name == WEIGHTS:
            info.type, info.linkname, info.size = kind, "/etc/hostname", 0
    rewrite(packed, entries)
    assert_refused(packed, r"weights.data' as a link or device; expected a file")


def test_manifest_that_leaves_the_bundle(packed: Path) -> None:
    """A maker who signs what he forged: names outside are refused all the same."""
    entries = members(packed)
    value = msgspec.json.decode(entries[0][1])
    value["text"]["tokenizer"]["path"] = "../outside"
    data = msgspec.json.encode(value)
    forged = [entry("manifest.json", data), entry("manifest.sha256", sha256_bytes(data).encode())]
    rewrite(packed, [*forged, *entries[2:], entry("../outside", b'{"model": {}}\n')])
    assert_refused(packed, r"names the file '../outside'; expected a path inside the bundle")


def test_wrong_size_and_lies_about_sizes(packed: Path) -> None:
    entries = members(packed)
    rewrite(packed, [(info, data) if info.name != WEIGHTS else entry(WEIGHTS, data + b"x") for info, data in entries])
    assert_refused(packed, r"weights.data in .* has 3,001 bytes; the manifest says 3,000")
    huge = tarfile.TarInfo("manifest.json")
    huge.size = 1 << 40
    packed.write_bytes(huge.tobuf() + bytes(1024))
    assert_refused(packed, r"'manifest.json' is where the file manifest.json was expected")


def test_control_c_while_unpacking_and_packing(fake_bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        unpack(packed, tmp_path / "a/b/out", progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(fake_bundle, tmp_path / "out.tar", progress=interrupt)
    assert names(tmp_path) == ["board", "bundle"]


LIMITED = """
import resource, sys
from edgevqa.runtime.archive import pack, unpack
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import UnavailableError
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
archive, folder = sys.argv[1:]
for work in (lambda: unpack(archive, folder + "/out"), lambda: pack(Bundle.open(folder + "/bundle"), "x.tar")):
    try:
        work()
    except UnavailableError as error:
        print(error)
"""


def test_full_disk_while_unpacking_and_packing(packed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(packed), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("file-size limit was reached") == 2, done.stdout + done.stderr
    assert names(tmp_path) == ["board", "bundle"]


def test_too_little_space_is_said_before_unpacking(packed: Path) -> None:
    entries = members(packed)
    value = msgspec.json.decode(entries[0][1])
    value["variants"]["fp32"]["weights"]["size_bytes"] = 10**17
    data = msgspec.json.encode(value)
    forged = [entry("manifest.json", data), entry("manifest.sha256", sha256_bytes(data).encode())]
    rewrite(packed, [*forged, *entries[2:]])
    with pytest.raises(UnavailableError, match=r"out needs 100000.0 TB, but .* has only"):
        unpack(packed, packed.parent / "out")
    assert names(packed.parent) == [packed.name]


def test_progress_reaches_the_total(fake_bundle: Bundle, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    file = pack(fake_bundle, tmp_path / "x.tar", progress=lambda name, done, total: calls.append((name, done, total)))
    total = sum(spec.size_bytes for spec in fake_bundle.files())
    assert calls[-1][1:] == (total, total)
    calls.clear()
    unpack(file, tmp_path / "out", progress=lambda name, done, total: calls.append((name, done, total)))
    assert calls[-1][1:] == (total, total)


def test_a_pipe_is_not_replaced_by_a_file(fake_bundle: Bundle, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tar"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"pipe.tar is a device or a pipe; expected the name of a file"):
        pack(fake_bundle, pipe, overwrite=True)
    assert pipe.is_fifo()
    assert not [name for name in names(tmp_path) if "partial" in name]


def test_a_mount_point_is_refused_before_anything_is_written() -> None:
    with pytest.raises(InputError, match=r"/ is a mount point.*a folder below it"):
        refuse_place(Path("/"))


@pytest.mark.parametrize(
    ("where", "given"), [("bundle", "."), ("bundle/engines/rtx", "../.."), ("bundle", "../bundle")]
)
def test_a_folder_to_stand_in_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, given: str
) -> None:
    """Its replacement would leave the shell in a folder that is gone."""
    (tmp_path / "bundle/engines/rtx").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / where)
    with pytest.raises(InputError, match=rf"holds the current directory.*cd {tmp_path}"):
        refuse_place(Path(given))
    monkeypatch.chdir(tmp_path)
    refuse_place(Path("bundle"))
