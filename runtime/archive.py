"""A bundle as one file for the way to a board: a plain tar, the same bytes for the same bundle, checked on arrival."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import (
    MANIFEST_HASH_NAME,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    check_manifest_hash,
    check_output,
    decode_manifest,
    manifest_files,
    unreadable,
)
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import BLOCK_BYTES, Meter, Progress
from edgevqa.runtime.manifest import FileSpec, Manifest
from edgevqa.runtime.paths import confined, is_regular
from edgevqa.runtime.staging import Staging, clear_write_errors

ARCHIVE_SUFFIX = ".edgevqa.tar"
_REFUSED = "Nothing was unpacked: get the file again from its maker."
_MALFORMED = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)
"""What `tarfile` raises for files that are no archive, are cut off or lie about themselves."""


def pack(
    bundle: Bundle, out_file: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Write all files of `bundle` that its manifest names into one archive, and return its path.

    Engine sets that are damaged are left out, and out of the archive's manifest (`Bundle.left_out` tells).
    Every hash is checked on the way. Raises `InputError` where `out_file` exists (without `overwrite`) or cannot be
    written, `BundleError` where the bundle is damaged, `UnavailableError` on a full disk.
    """
    target = Path(out_file)
    bundle.set_damaged_engines_aside(hashes=True)
    needed_bytes = _total_bytes(bundle.manifest)
    with clear_write_errors(target, needed_bytes=needed_bytes):
        _check_archive_target(target, overwrite)
        with Staging(target, needed_bytes=needed_bytes) as staging:
            with tarfile.open(staging.partial, "w", format=tarfile.PAX_FORMAT) as tar:
                _pack_files(tar, bundle, Meter(progress, needed_bytes))
            staging.commit(lambda: _check_archive_target(target, overwrite))
    return target


def unpack(
    file: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Unpack an archive of `pack` into folder `out_dir`, whole or not at all, and open it.

    Only regular files that the manifest names are taken, and each must have its size and hash. Raises `BundleError` for
    anything else and for files that are no such archive or are cut off; `InputError` and `UnavailableError` as `pack`.
    """
    source, target = Path(file), Path(out_dir)
    with _clear_read_errors(source), tarfile.open(source, "r:") as tar:
        head = _read_head(tar, source)
        manifest = decode_manifest(head[MANIFEST_NAME], where=f"{MANIFEST_NAME} in {source}")
        needed_bytes = _total_bytes(manifest)
        with clear_write_errors(target, needed_bytes=needed_bytes):
            check_output(target, overwrite=overwrite)
            with Staging(target, needed_bytes=needed_bytes) as staging:
                staging.partial.mkdir()
                for name, data in head.items():
                    (staging.partial / name).write_bytes(data)
                _unpack_files(tar, manifest, staging.partial, _Source(source, Meter(progress, needed_bytes)))
                staging.commit(lambda: check_output(target, overwrite=overwrite))
    return Bundle.open(target)


def _check_archive_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise InputError(f"{target} is a folder; expected the name of a file, such as {target.name}{ARCHIVE_SUFFIX}.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists. Give another output file, or replace it with --overwrite.")


def _total_bytes(manifest: Manifest) -> int:
    return sum(spec.size_bytes for spec in manifest.files())


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    """An archive entry without owner, time or permissions of this machine."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info


def _pack_files(tar: tarfile.TarFile, bundle: Bundle, meter: Meter) -> None:
    for name, data in _head(bundle).items():
        tar.addfile(_entry(name, len(data)), io.BytesIO(data))
    for spec in sorted(bundle.manifest.files(), key=lambda spec: spec.path):
        with (bundle.root / spec.path).open("rb") as stream:
            reader = _HashingReader(stream, meter, spec.path)
            tar.addfile(_entry(spec.path, spec.size_bytes), reader)
        if reader.digest.hexdigest() != spec.sha256:
            raise BundleError(f"{bundle.root / spec.path} does not have the hash of the manifest. {bundle.cure(spec)}")


def _head(bundle: Bundle) -> dict[str, bytes]:
    """The manifest and its hash: as they are on the disk, but for engines that were left out."""
    if not bundle.damaged_engines:
        return {name: (bundle.root / name).read_bytes() for name in (MANIFEST_NAME, MANIFEST_HASH_NAME)}
    return manifest_files(bundle.manifest)


class _HashingReader(io.RawIOBase):
    """Hashes and counts what is read through it."""

    def __init__(self, stream: IO[bytes], meter: Meter, name: str) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self._stream = stream
        self._meter = meter
        self._name = name

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        self._meter.add(self._name, len(data))
        return data


class _Source(msgspec.Struct, frozen=True):
    """The archive that is being read, for errors and progress."""

    path: Path
    meter: Meter


@contextlib.contextmanager
def _clear_read_errors(source: Path) -> Generator[None, None, None]:
    """Turn what goes wrong while reading the archive into a `BundleError`."""
    if not source.exists():
        raise BundleError(f"{source} does not exist; expected a file made by 'edgevqa bundle pack'.")
    if not is_regular(source):
        raise BundleError(f"{source} is no regular file; expected a file made by 'edgevqa bundle pack'.")
    try:
        yield
    except _MALFORMED as error:
        raise BundleError(
            f"{source} is not a packed bundle, or was cut off: {error}. "
            "Expected a file made by 'edgevqa bundle pack'; copy it again."
        ) from error
    except PermissionError as error:
        raise unreadable(source, error) from error


def _read_head(tar: tarfile.TarFile, source: Path) -> dict[str, bytes]:
    """The manifest and its hash, which come first, checked against each other."""
    head: dict[str, bytes] = {}
    for name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
        info = _next(tar)
        if info is None:
            raise EOFError(f"it ends where {name} was expected")
        if info.name != name or not _is_plain(info) or info.size > MANIFEST_LIMIT_BYTES:
            raise BundleError(
                f"{source} is not a packed bundle: {info.name!r} is where the file {name} was expected. "
                "Make one with 'edgevqa bundle pack'."
            )
        head[name] = b"".join(_blocks(tar, info))
    check_manifest_hash(head[MANIFEST_NAME], head[MANIFEST_HASH_NAME], where=f"{MANIFEST_NAME} in {source}")
    return head


def _unpack_files(tar: tarfile.TarFile, manifest: Manifest, root: Path, source: _Source) -> None:
    pending = {spec.path: spec for spec in manifest.files()}
    while (info := _next(tar)) is not None:
        spec = pending.pop(info.name, None)
        if spec is None:
            raise BundleError(
                f"{source.path} holds {info.name!r}, unknown to its manifest or a second time. {_REFUSED}"
            )
        if not _is_plain(info):
            raise BundleError(f"{source.path} holds {info.name!r} as a link or device; expected a file. {_REFUSED}")
        _unpack_file(tar, info, spec, root, source)
    if pending:
        raise BundleError(f"{source.path} was cut off: it lacks {', '.join(sorted(pending))}. Copy it again.")


def _unpack_file(tar: tarfile.TarFile, info: tarfile.TarInfo, spec: FileSpec, root: Path, source: _Source) -> None:
    if info.size != spec.size_bytes:
        raise BundleError(
            f"{spec.path} in {source.path} has {info.size:,} bytes; "
            f"the manifest says {spec.size_bytes:,}. Copy it again."
        )
    path = confined(root, spec.path, where=str(source.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as stream:
        for block in _blocks(tar, info):
            digest.update(block)
            stream.write(block)
            source.meter.add(spec.path, len(block))
    if digest.hexdigest() != spec.sha256:
        raise BundleError(
            f"{spec.path} in {source.path} has SHA-256 {digest.hexdigest()[:16]}...; the manifest says "
            f"{spec.sha256[:16]}...: damaged on the way. Copy it again."
        )


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next entry, None at the end. Where the file is rubbish, some Pythons seek to impossible places."""
    try:
        return tar.next()
    except OSError as error:
        raise tarfile.ReadError(str(error.strerror)) from error


def _is_plain(info: tarfile.TarInfo) -> bool:
    """Whether the entry is an ordinary file: no link, device, folder or sparse file."""
    return info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()


def _blocks(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    """The entry's bytes, all of them, in blocks. Raises `EOFError` when the archive ends before."""
    stream = tar.extractfile(info)
    left = info.size
    while stream is not None and left > 0:
        block = stream.read(min(BLOCK_BYTES, left))
        if not block:
            raise EOFError(f"it ends inside {info.name!r}")
        left -= len(block)
        yield block
