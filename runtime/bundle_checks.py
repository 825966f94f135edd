"""What must hold for a bundle's files: the manifest, its hash, and every named file's place, size and hash."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edgevqa.runtime import manifest as schema
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import Meter, Progress, sha256_bytes, sha256_file
from edgevqa.runtime.manifest import FileSpec, Manifest
from edgevqa.runtime.paths import check_relative, confined, is_regular

MANIFEST_NAME = "manifest.json"
MANIFEST_HASH_NAME = "manifest.sha256"
MANIFEST_LIMIT_BYTES = 64 << 20
HASH_LIMIT_BYTES = 4096
COPY_AGAIN = "Copy the bundle again, or export it again."

Status = Literal["ok", "missing", "size", "hash", "outside", "unnamed", "unreadable"]


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify_bundle` found for one file. `unnamed`: in the folder, not in the manifest; no failure.

    `cure` says what to do about a failure.
    """

    path: str
    status: Status
    detail: str
    size_bytes: int
    cure: str = ""

    @property
    def passed(self) -> bool:
        return self.status in ("ok", "unnamed")


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in `data`, with every file entry plausible; `where` names it in errors. Raises `BundleError`."""
    try:
        manifest = schema.decode(data, where=where)
    except RecursionError as error:
        raise BundleError(f"{where} is nested too deeply to be a bundle manifest. {COPY_AGAIN}") from error
    check_manifest(manifest, where=where)
    return manifest


def check_manifest(manifest: Manifest, *, where: str) -> None:
    """Raise `BundleError` when a file entry leaves the bundle, has no real hash or size, or contradicts another."""
    seen: dict[str, FileSpec] = {}
    for spec in manifest.entries():
        check_relative(spec.path, where=where)
        if spec.path in (MANIFEST_NAME, MANIFEST_HASH_NAME):
            raise BundleError(
                f"{where} names {spec.path} as a file of its own; expected graphs, weights or a tokenizer."
            )
        if not re.fullmatch("[0-9a-f]{64}", spec.sha256) or spec.size_bytes < 0:
            raise BundleError(
                f"{where} gives {spec.path} the SHA-256 {spec.sha256!r} and {spec.size_bytes} bytes; "
                "expected 64 lower-case hexadecimal digits and a size of 0 or more. Export the bundle again."
            )
        if seen.setdefault(spec.path, spec) != spec:
            raise BundleError(
                f"{where} names {spec.path} twice, with different hashes or sizes. Export the bundle again."
            )


def manifest_files(manifest: Manifest) -> dict[str, bytes]:
    """The manifest and its hash as a bundle keeps them, by file name."""
    data = schema.encode(manifest)
    return {MANIFEST_NAME: data, MANIFEST_HASH_NAME: f"{sha256_bytes(data)}  {MANIFEST_NAME}\n".encode("ascii")}


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise `InputError` unless a bundle may be written to `path`: it is free, or `overwrite` and a bundle or empty."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; expected a folder to write the bundle to. Give another output.")
    if not overwrite:
        raise InputError(f"{path} exists. Give another output folder, or replace it with --overwrite.")
    is_bundle = is_regular(path / MANIFEST_NAME) and is_regular(path / MANIFEST_HASH_NAME)
    if not is_bundle and any(path.iterdir()):
        raise InputError(
            f"{path} is not a bundle (it lacks {MANIFEST_NAME} or {MANIFEST_HASH_NAME}), and --overwrite replaces "
            "nothing else. Give another output folder, or delete this one yourself."
        )


def list_files(root: Path) -> set[str]:
    """Every file below `root`, links included and not followed, as relative POSIX paths."""
    return {(Path(folder) / name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names}


def read_manifest(root: Path) -> bytes:
    """The bytes of the manifest in folder `root`. Raises `BundleError` when there is no such bundle."""
    try:
        if not root.exists():
            raise BundleError(f"{root} does not exist; expected a bundle folder. Make one with 'edgevqa export'.")
        if not root.is_dir():
            packed = root.suffix == ".tar"
            hint = (
                "Unpack it first with 'edgevqa bundle unpack'." if packed else f"Give the folder with {MANIFEST_NAME}."
            )
            raise BundleError(f"{root} is a file; expected a bundle folder. {hint}")
        path = confined(root, MANIFEST_NAME, where=str(root))
        if not is_regular(path):
            raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}. Make one with 'edgevqa export'.")
        if path.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise BundleError(
                f"{path} is over {MANIFEST_LIMIT_BYTES:,} bytes; expected a bundle manifest. {COPY_AGAIN}"
            )
        return path.read_bytes()
    except OSError as error:
        raise unreadable(root, error) from error


def unreadable(path: Path, error: OSError) -> BundleError:
    """The error for a path that the operating system will not let us read."""
    return BundleError(f"{error.filename or path} cannot be read: {error.strerror or error}. Check its permissions.")


def check_manifest_hash(data: bytes, recorded: bytes, *, where: str) -> None:
    """Raise `BundleError` unless `recorded` (a line as `sha256sum` writes it) holds the hash of the manifest `data`."""
    expected = recorded[:64].decode("ascii", errors="replace")
    found = sha256_bytes(data)
    if found != expected:
        raise BundleError(
            f"{where} has SHA-256 {found[:16]}...; {MANIFEST_HASH_NAME} says {expected[:16]!r}...: "
            f"it was changed after the export, or damaged. {COPY_AGAIN}"
        )


def check_recorded_hash(root: Path, data: bytes) -> None:
    """Check manifest `data` of the bundle at `root` against its manifest.sha256. Raises `BundleError`."""
    path = confined(root, MANIFEST_HASH_NAME, where=str(root))
    if not is_regular(path):
        raise BundleError(f"{path} is missing; expected the SHA-256 of {MANIFEST_NAME}. {COPY_AGAIN}")
    try:
        with path.open("rb") as stream:
            recorded = stream.read(HASH_LIMIT_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    check_manifest_hash(data, recorded, where=str(root / MANIFEST_NAME))


def examine(
    root: Path, spec: FileSpec, hash_of: Callable[[Path, str], str] | None = None, *, cure: str = COPY_AGAIN
) -> FileReport:
    """What is true of one named file: its place, kind and size, and its hash where `hash_of` is given."""
    status, detail = _find_fault(root, spec, hash_of)
    return FileReport(
        path=spec.path, status=status, detail=detail, size_bytes=spec.size_bytes, cure="" if status == "ok" else cure
    )


def build_line(root: Path, target: str, variant: str) -> str:
    """The command that makes the engines of a variant anew."""
    words = ("build", str(root), "--target", target, "--precision", variant)
    return f"edgevqa {' '.join(map(shlex.quote, words))}"


def calibrate_line(root: Path) -> str:
    """The command that calibrates a bundle, with the data still to be named."""
    return f"edgevqa calibrate {shlex.quote(str(root))} --data DATA"


def engine_cures(root: Path, manifest: Manifest) -> dict[str, str]:
    """What to do where a file of an engine set is damaged, by path: engines are built again, not copied or exported."""
    return {
        spec.path: f"Build the engines again: {build_line(root, entry.target, entry.variant)}"
        for entry in manifest.engines.values()
        for spec in entry.files()
    }


def _find_fault(root: Path, spec: FileSpec, hash_of: Callable[[Path, str], str] | None) -> tuple[Status, str]:
    try:
        path = confined(root, spec.path, where=str(root / MANIFEST_NAME))
    except BundleError as error:
        return "outside", str(error)
    if not is_regular(path):
        return "missing", "is missing or no regular file, though the manifest names it"
    try:
        size = path.stat().st_size
        if size != spec.size_bytes:
            return "size", f"has {size:,} bytes; the manifest says {spec.size_bytes:,}"
        found = spec.sha256 if hash_of is None else hash_of(path, spec.path)
    except OSError as error:
        return "unreadable", f"cannot be read: {error.strerror}"
    if found != spec.sha256:
        return "hash", f"has SHA-256 {found[:16]}...; the manifest says {spec.sha256[:16]}...: changed or damaged"
    return "ok", ""


def raise_if_failed(root: Path, report: FileReport) -> None:
    """Raise `BundleError` saying what is wrong with the file, if anything is."""
    if report.status == "outside":
        raise BundleError(report.detail)
    if not report.passed:
        raise BundleError(f"{root / report.path} {report.detail}. {report.cure}")


def verify_bundle(path: Path, progress: Progress | None = None) -> list[FileReport]:
    """Read and hash every file of the bundle anew, whatever is remembered; one entry a file, the manifest first.

    Files that the manifest does not name are listed as `unnamed`. Raises `BundleError` only where the manifest itself
    is missing or cannot be understood.
    """
    data = read_manifest(path)
    manifest = decode_manifest(data, where=str(path / MANIFEST_NAME))
    specs = manifest.files()
    meter = Meter(progress, sum(spec.size_bytes for spec in specs))
    reports = [_examine_manifest(path, data)]
    cures = engine_cures(path, manifest)

    def hash_of(file: Path, name: str) -> str:
        return sha256_file(file, meter, name=name)

    reports += [examine(path, spec, hash_of, cure=cures.get(spec.path, COPY_AGAIN)) for spec in specs]
    known = {MANIFEST_NAME, MANIFEST_HASH_NAME} | {spec.path for spec in specs}
    for name in sorted(list_files(path) - known):
        size = (path / name).lstat().st_size
        reports.append(FileReport(path=name, status="unnamed", detail="is not in the manifest", size_bytes=size))
    return reports


def _examine_manifest(root: Path, data: bytes) -> FileReport:
    try:
        check_recorded_hash(root, data)
    except BundleError as error:
        return FileReport(path=MANIFEST_NAME, status="hash", detail=str(error), size_bytes=len(data), cure=COPY_AGAIN)
    return FileReport(path=MANIFEST_NAME, status="ok", detail="", size_bytes=len(data))
