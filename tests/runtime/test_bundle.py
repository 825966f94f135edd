"""Opening a bundle: every fault is found and named, hashes are remembered, changes are noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.runtime import hashing
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import sha256_bytes

WEIGHTS = "graphs/fp32/weights.data"


def flip(path: Path, at: int = 100) -> None:
    """Change one byte, and neither size nor modification time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a right hash, as a hostile maker would."""
    value = msgspec.json.decode((root / "manifest.json").read_bytes())
    change(value)
    data = msgspec.json.encode(value)
    (root / "manifest.json").write_bytes(data)
    (root / "manifest.sha256").write_text(f"{sha256_bytes(data)}  manifest.json\n")


def rename_weights(name: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["variants"]["fp32"]["weights"]["path"] = name

    return change


def test_a_whole_bundle_opens(fake_bundle: Bundle) -> None:
    bundle = Bundle.open(fake_bundle.root)
    assert sorted(bundle.manifest.variants) == ["fp16", "fp32"]
    assert bundle.graph_path("fp32", "projector") == bundle.root / "graphs/fp32/projector.onnx"
    assert bundle.weights_path("fp16") == bundle.root / "graphs/fp16/weights.data"
    assert bundle.tokenizer_path == bundle.root / "tokenizer.json"
    assert bundle.graph("fp32", "projector").opset == 19
    assert len(bundle.files()) == 7
    assert {spec.path for spec in bundle.files("fp32", ["projector"])} == {
        "graphs/fp32/projector.onnx",
        WEIGHTS,
        "tokenizer.json",
    }


@pytest.mark.parametrize(
    ("variant", "graph", "message"),
    [
        ("int8", "projector", r"no variant 'int8' in .*bundle; there are: fp16, fp32"),
        ("fp32", "decoder", r"no graph 'decoder' in variant 'fp32'.*; there are: projector, vision_trunk"),
    ],
)
def test_an_unknown_name_lists_the_known(fake_bundle: Bundle, variant: str, graph: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fake_bundle.graph_path(variant, graph)


def test_manifest_hash_is_what_sha256sum_writes(fake_bundle: Bundle) -> None:
    digest = sha256_bytes((fake_bundle.root / "manifest.json").read_bytes())
    assert (fake_bundle.root / "manifest.sha256").read_text() == f"{digest}  manifest.json\n"


def test_missing_folder_file_and_foreign_folder(fake_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere does not exist; .*edgevqa export"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest.json is a file; .*Give the folder"):
        Bundle.open(fake_bundle.root / "manifest.json")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json"):
        Bundle.open(tmp_path)
    (tmp_path / "x.edgevqa.tar").touch()
    with pytest.raises(BundleError, match=r"Unpack it first"):
        Bundle.open(tmp_path / "x.edgevqa.tar")


def test_changed_manifest_is_refused(fake_bundle: Bundle) -> None:
    path = fake_bundle.root / "manifest.json"
    path.write_text(path.read_text().replace("qavit_t5", "qavit_t6"))
    with pytest.raises(BundleError, match=r"manifest.json has SHA-256 .*manifest.sha256 says"):
        Bundle.open(fake_bundle.root)
    assert Bundle.open(fake_bundle.root, check=False).manifest.family == "qavit_t6"


@pytest.mark.parametrize("recorded", ["", "no hash", "\udcff" * 3])
def test_damaged_manifest_hash_is_refused(fake_bundle: Bundle, recorded: str) -> None:
    (fake_bundle.root / "manifest.sha256").write_bytes(recorded.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"manifest.sha256 says"):
        Bundle.open(fake_bundle.root)
    (fake_bundle.root / "manifest.sha256").unlink()
    with pytest.raises(BundleError, match=r"manifest.sha256 is missing"):
        Bundle.open(fake_bundle.root)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"schema_version": "1"}'])
def test_a_manifest_that_is_no_manifest(fake_bundle: Bundle, data: bytes) -> None:
    (fake_bundle.root / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest.json is (not a bundle manifest|nested too deeply)"):
        Bundle.open(fake_bundle.root, check=False)


def test_newer_schema_and_unknown_key(fake_bundle: Bundle) -> None:
    rewrite_manifest(fake_bundle.root, lambda value: value.update(schema_version=99))
    with pytest.raises(BundleError, match=r"schema version 99; this edgevqa reads version 1. Upgrade edgevqa"):
        Bundle.open(fake_bundle.root)
    rewrite_manifest(fake_bundle.root, lambda value: value.update(schema_version=1, colour="red"))
    with pytest.raises(BundleError, match=r"colour"):
        Bundle.open(fake_bundle.root)


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside.data", "graphs/../../outside.data", "graphs//x", "./x", "", "C:\\x", "C:x", "a\nb"],
)
@pytest.mark.parametrize("check", [True, False])
def test_paths_that_leave_the_bundle(fake_bundle: Bundle, name: str, check: bool) -> None:
    (fake_bundle.root.parent / "outside.data").write_bytes(b"x")
    rewrite_manifest(fake_bundle.root, rename_weights(name))
    with pytest.raises(BundleError, match=r"expected a path inside the bundle"):
        Bundle.open(fake_bundle.root, check=check)


def test_the_manifest_may_not_name_itself_or_a_file_twice_or_a_false_hash(fake_bundle: Bundle) -> None:
    root = fake_bundle.root
    before = (root / "manifest.json").read_bytes()
    rewrite_manifest(root, rename_weights("manifest.json"))
    with pytest.raises(BundleError, match=r"names manifest.json as a file of its own"):
        Bundle.open(root)
    rewrite_manifest(root, rename_weights("graphs/fp16/weights.data"))
    with pytest.raises(BundleError, match=r"names graphs/fp16/weights.data twice"):
        Bundle.open(root)
    (root / "manifest.json").write_bytes(before)
    rewrite_manifest(root, lambda value: value["text"]["tokenizer"].update(sha256="XYZ"))
    with pytest.raises(BundleError, match=r"expected 64 lower-case hexadecimal digits"):
        Bundle.open(root)


def test_links_that_leave_the_bundle(fake_bundle: Bundle, tmp_path: Path) -> None:
    path = fake_bundle.root / WEIGHTS
    outside = tmp_path / "outside.data"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(BundleError, match=r"is a link that leaves the bundle"):
        Bundle.open(fake_bundle.root, check=False)
    outside.rename(fake_bundle.root / "inside.data")
    path.unlink()
    path.symlink_to("../../inside.data")
    Bundle.open(fake_bundle.root).require_files()


def test_a_linked_folder_and_a_circle_of_links(fake_bundle: Bundle, tmp_path: Path) -> None:
    folder = fake_bundle.root / "graphs/fp32"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"leaves the bundle"):
        Bundle.open(fake_bundle.root)
    folder.unlink()
    folder.symlink_to("fp32")
    with pytest.raises(BundleError, match=r"is missing or no regular file"):
        Bundle.open(fake_bundle.root)


def test_a_bundle_that_is_reached_by_a_link(fake_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fake_bundle.root)
    linked = Bundle.open(tmp_path / "link")
    linked.require_files()
    assert linked.manifest == fake_bundle.manifest


@pytest.mark.parametrize("check", [True, False])
def test_missing_short_and_special_files(fake_bundle: Bundle, check: bool) -> None:
    path = fake_bundle.root / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"weights.data has 2,999 bytes; the manifest says 3,000. Copy the bundle"):
        Bundle.open(fake_bundle.root, check=check)
    path.unlink()
    with pytest.raises(BundleError, match=r"weights.data is missing"):
        Bundle.open(fake_bundle.root, check=check)
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(BundleError, match=r"no regular file"):
        Bundle.open(fake_bundle.root, check=check)
    path.unlink()
    path.mkdir()
    with pytest.raises(BundleError, match=r"no regular file"):
        Bundle.open(fake_bundle.root, check=check)


@pytest.mark.parametrize("name", ["graphs/fp32/projector.onnx", WEIGHTS])
def test_no_path_of_a_damaged_file_is_handed_out(fake_bundle: Bundle, name: str) -> None:
    flip(fake_bundle.root / name)
    bundle = Bundle.open(fake_bundle.root)
    with pytest.raises(BundleError, match=rf"{name} has SHA-256 .*; the manifest says .*: changed or damaged"):
        bundle.graph_path("fp32", "projector")
    with pytest.raises(BundleError, match=name):
        bundle.require_files("fp32")
    bundle.require_files("fp16")  # a variant that nobody damaged stays usable
    unchecked = Bundle.open(fake_bundle.root, check=False)
    assert unchecked.graph_path("fp32", "projector").is_file()


def test_damaged_tokenizer(fake_bundle: Bundle) -> None:
    flip(fake_bundle.root / "tokenizer.json", at=3)
    bundle = Bundle.open(fake_bundle.root)
    with pytest.raises(BundleError, match=r"tokenizer.json has SHA-256"):
        _ = bundle.tokenizer_path


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(fake_bundle: Bundle) -> None:
    (fake_bundle.root / WEIGHTS).chmod(0)
    with pytest.raises(BundleError, match=r"weights.data cannot be read: Permission denied"):
        Bundle.open(fake_bundle.root).require_files("fp32")


def read_files(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a fresh opening of the bundle really reads for their hashes."""
    read: list[str] = []
    real = hashing.sha256_file

    def watch(path: Path, *args: Any, **kwargs: Any) -> str:
        read.append(path.relative_to(bundle.root).as_posix())
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "sha256_file", watch)
        Bundle.open(bundle.root).require_files("fp32")
    return read


def test_hashes_are_remembered_and_changes_noticed(
    memory_folder: Path, fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_files(fake_bundle, monkeypatch) == [], "the writer's own hashes are remembered"
    for file in memory_folder.iterdir():
        file.unlink()
    assert len(read_files(fake_bundle, monkeypatch)) == 4
    assert read_files(fake_bundle, monkeypatch) == []
    flip(fake_bundle.root / WEIGHTS)
    with pytest.raises(BundleError, match=r"weights.data has SHA-256"):
        read_files(fake_bundle, monkeypatch)
    flip(fake_bundle.root / WEIGHTS)
    assert read_files(fake_bundle, monkeypatch) == [WEIGHTS]


def test_a_file_that_takes_anothers_place_is_noticed(memory_folder: Path, fake_bundle: Bundle) -> None:
    path = fake_bundle.root / WEIGHTS
    fake_bundle.require_files()
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    with pytest.raises(BundleError, match=r"weights.data has SHA-256"):
        Bundle.open(fake_bundle.root).require_files("fp32")


def test_a_fresh_file_is_not_remembered(fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the clock's grain a second change leaves the same time stamp."""
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    os.utime(fake_bundle.root / WEIGHTS)
    os.utime(fake_bundle.root / "tokenizer.json", (1, 1))
    fake_bundle.require_files("fp32")
    assert "tokenizer.json" not in read_files(fake_bundle, monkeypatch)
    assert WEIGHTS in read_files(fake_bundle, monkeypatch)


@pytest.mark.parametrize("obstacle", ["file", "rubbish"])
def test_memory_that_cannot_be_used_is_no_error(
    memory_folder: Path, fake_bundle: Bundle, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "file":
        for file in memory_folder.iterdir():
            file.unlink()
        memory_folder.rmdir()
        memory_folder.write_text("in the way")
    else:
        for file in memory_folder.iterdir():
            file.write_bytes(b"\xff rubbish")
    assert len(read_files(fake_bundle, monkeypatch)) == 4


def test_the_memory_does_not_grow_without_end(
    memory_folder: Path, fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "MEMORY_LIMIT", 20)
    memory_folder.mkdir(parents=True, exist_ok=True)
    for number in range(100):
        (memory_folder / f"old-{number}.json").touch()
    (fake_bundle.root / WEIGHTS).touch()
    fake_bundle.require_files()
    assert len(list(memory_folder.iterdir())) < 60


def test_progress_counts_every_byte_once(fake_bundle: Bundle, memory_folder: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    bundle = Bundle.open(fake_bundle.root, progress=lambda name, done, total: calls.append((name, done, total)))
    assert calls == []
    bundle.require_files("fp32")
    total = sum(spec.size_bytes for spec in bundle.files("fp32"))
    assert calls[-1][1:] == (total, total)
    assert {name for name, _, _ in calls} == {spec.path for spec in bundle.files("fp32")}
    calls.clear()
    bundle.require_files("fp32")
    assert calls == [], "a file is checked once by each opened bundle"


def test_verify_reports_each_file(fake_bundle: Bundle) -> None:
    root = fake_bundle.root
    assert {report.status for report in fake_bundle.verify()} == {"ok"}
    flip(root / WEIGHTS)
    (root / "tokenizer.json").unlink()
    (root / "graphs/fp16/projector.onnx").write_bytes(b"short")
    (root / "notes.txt").write_text("mine")
    reports = {report.path: report for report in fake_bundle.verify()}
    assert {path: report.status for path, report in reports.items() if report.status != "ok"} == {
        WEIGHTS: "hash",
        "tokenizer.json": "missing",
        "graphs/fp16/projector.onnx": "size",
        "notes.txt": "unnamed",
    }
    assert len(reports) == 9
    assert reports["notes.txt"].passed
    assert not reports[WEIGHTS].passed


def test_verify_reads_anew_whatever_is_remembered(memory_folder: Path, fake_bundle: Bundle) -> None:
    fake_bundle.require_files()
    path = fake_bundle.root / WEIGHTS
    record = next(file for file in memory_folder.iterdir() if str(path) in file.read_text())
    flip(path)
    known = msgspec.json.decode(record.read_bytes())
    known["ctime_ns"] = path.stat().st_ctime_ns  # a memory that was led astray
    record.write_bytes(msgspec.json.encode(known))
    Bundle.open(fake_bundle.root).require_files()
    assert {report.path for report in fake_bundle.verify() if not report.passed} == {WEIGHTS}
