"""Writing a bundle: whole or absent, and adding to one that exists."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import (
    check_manifest,
    check_output,
    list_files,
    manifest_files,
    read_manifest,
)
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import HashMemory, sha256_bytes, sha256_file
from edgevqa.runtime.manifest import FileSpec, Manifest
from edgevqa.runtime.paths import confined, is_regular
from edgevqa.runtime.staging import Staging, clear_write_errors, explain_write_error


class BundleWriter:
    """Writes a bundle into a hidden sibling folder of `path` and renames it into place in `finish`.

    A context manager. Leaving it without `finish`, by whatever exception, removes the sibling and changes nothing.

        with BundleWriter("vqa") as writer:
            onnx.save(model, writer.path("graphs/fp32/projector.onnx"))
            file = writer.describe("graphs/fp32/projector.onnx")
            bundle = writer.finish(manifest)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, needed_bytes: int | None = None
    ) -> None:
        """`needed_bytes`: about how much will be written; a disk with less is refused on entering."""
        self.target = Path(path)
        self.overwrite = overwrite
        self._needed_bytes = needed_bytes
        self._staging = Staging(self.target, needed_bytes=needed_bytes)
        self._base: Bundle | None = None
        self._base_sha256 = ""
        self._described: dict[str, tuple[os.stat_result, FileSpec]] = {}
        self._inherited: set[str] = set()

    @classmethod
    def extend(cls, bundle: Bundle, *, needed_bytes: int | None = None) -> BundleWriter:
        """A writer that starts with all files of `bundle` (hard links where possible) and replaces it in `finish`.

        Every file of `bundle` is checked on entering, when engine sets that are damaged are taken out of its manifest
        (`Bundle.left_out` tells). `path` of a file that is there gives a fresh place for it, so
        that what the old bundle holds never changes; files that the new manifest does not name are dropped.
        """
        writer = cls(bundle.root, overwrite=True, needed_bytes=needed_bytes)
        writer._base = bundle
        return writer

    @property
    def root(self) -> Path:
        """The folder that is written to; it is gone at the end."""
        return self._staging.partial

    def path(self, relative: str) -> Path:
        """Where to write the file that will be `relative` in the bundle; its folder is made. Raises `BundleError`."""
        path = confined(self.root, relative, where="The exporter")
        path.parent.mkdir(parents=True, exist_ok=True)
        if relative in self._inherited:
            path.unlink()
            self._inherited.remove(relative)
        self._described.pop(relative, None)
        return path

    def describe(self, relative: str) -> FileSpec:
        """The manifest entry of a file that was written: its size and hash. Raises `OSError` where it is missing."""
        path = confined(self.root, relative, where="The exporter")
        status = path.stat()
        spec = FileSpec(path=relative, sha256=sha256_file(path), size_bytes=status.st_size)
        self._described[relative] = (status, spec)
        return spec

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the same disk for what is not part of the bundle; it is removed at the end."""
        folder = self.root / "scratch"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def add_file(self, source: str | os.PathLike[str], relative: str) -> FileSpec:
        """Copy `source` into the bundle. Raises `InputError` where it cannot be read."""
        if not is_regular(Path(source)) or not os.access(source, os.R_OK):
            raise InputError(f"{source} cannot be read; expected a file to put into the bundle as {relative}.")
        shutil.copyfile(source, self.path(relative))
        return self.describe(relative)

    def add_bytes(self, data: bytes, relative: str) -> FileSpec:
        """Write `data` as a file of the bundle."""
        self.path(relative).write_bytes(data)
        return self.describe(relative)

    def finish(self, manifest: Manifest) -> Bundle:
        """Write the manifest and its hash, flush all to the disk, rename into place and open the result.

        Raises `BundleError` when the files and the manifest do not agree (missing, unnamed, or other content), or the
        bundle that is being extended was changed since it was opened.
        """
        check_manifest(manifest, where="The new manifest")
        self._drop_inherited(manifest)
        self._compare(manifest)
        for name, data in manifest_files(manifest).items():
            (self.root / name).write_bytes(data)
        self._check_base()  # before the disk is made busy, and again when nobody else can change it
        self._staging.commit(self._check_target)
        self._remember(manifest)
        return Bundle.open(self.target)

    def __enter__(self) -> BundleWriter:
        in_place = self._base is not None
        with clear_write_errors(self.target, needed_bytes=self._needed_bytes, in_place=in_place):
            check_output(self.target, overwrite=self.overwrite)
            try:
                self._staging.__enter__()
                self.root.mkdir()
                self._inherit()
            except BaseException:
                self._staging.discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staging.discard()
        if error is not None:
            in_place = self._base is not None
            clear = explain_write_error(error, self.target, needed_bytes=self._needed_bytes, in_place=in_place)
            if clear is not None:
                raise clear from error

    def _inherit(self) -> None:
        """Bring in the files of the bundle that is extended."""
        if self._base is None:
            return
        self._base_sha256 = self._base.opened_sha256 or sha256_bytes(read_manifest(self._base.root))
        self._check_base()  # since it was opened: what is written is made of what was read then
        try:
            self._link(self._base)
        except BundleError:
            self._check_base()  # the reason, where another process replaced the files under our hands
            raise

    def _link(self, base: Bundle) -> None:
        base.set_damaged_engines_aside(hashes=True)  # else the command that builds them again would be refused
        base.require_files()
        for spec in base.manifest.files():
            path = self.path(spec.path)
            source = os.path.realpath(base.root / spec.path)
            try:
                os.link(source, path)
            except OSError:
                shutil.copy2(source, path)
            self._described[spec.path] = (path.stat(), spec)
            self._inherited.add(spec.path)

    def _drop_inherited(self, manifest: Manifest) -> None:
        for name in self._inherited - {spec.path for spec in manifest.files()}:
            (self.root / name).unlink()

    def _compare(self, manifest: Manifest) -> None:
        """Raise `BundleError` unless the files that were written are the ones that the manifest describes."""
        named = {spec.path for spec in manifest.files()}
        there = list_files(self.root)
        if named != there:
            raise BundleError(
                f"{self.target} was not written: the manifest and the files differ. "
                f"Named but missing: {sorted(named - there)}. There but not named: {sorted(there - named)}."
            )
        for spec in manifest.files():
            found = self._found(spec.path)
            if found != spec:
                raise BundleError(
                    f"{self.target} was not written: {spec.path} has {found.size_bytes:,} bytes and SHA-256 "
                    f"{found.sha256[:16]}...; the manifest says {spec.size_bytes:,} and {spec.sha256[:16]}...."
                )

    def _found(self, relative: str) -> FileSpec:
        """The file's entry as it is now; it is read again only where it changed since `describe`."""
        known = self._described.get(relative)
        if known is not None and _same(known[0], (self.root / relative).stat()):
            return known[1]
        return self.describe(relative)

    def _check_target(self) -> None:
        self._check_base()
        check_output(self.target, overwrite=self.overwrite)

    def _check_base(self) -> None:
        if self._base is None:
            return
        if sha256_bytes(read_manifest(self._base.root)) != self._base_sha256:
            raise BundleError(f"{self._base.root} was changed by another process meanwhile. Run the command again.")

    def _remember(self, manifest: Manifest) -> None:
        """Let the first load of what was just hashed be cheap."""
        memory = HashMemory()
        for spec in manifest.files():
            path = self._staging.target / spec.path
            status = path.stat()
            if _same(self._described[spec.path][0], status):
                memory.remember(path, spec.sha256, status)


def _same(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether a file's content is taken to be the same. Hard links made or deleted change `st_ctime` alone."""
    return (before.st_size, before.st_mtime_ns, before.st_ino) == (now.st_size, now.st_mtime_ns, now.st_ino)
