"""Opening a bundle: manifest, structure and hashes are checked before a path is handed out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from edgevqa.runtime.bundle_checks import (
    COPY_AGAIN,
    MANIFEST_NAME,
    FileReport,
    calibrate_line,
    check_recorded_hash,
    decode_manifest,
    engine_cures,
    examine,
    raise_if_failed,
    read_manifest,
    verify_bundle,
)
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.hashing import HashMemory, Meter, Progress, sha256_bytes
from edgevqa.runtime.manifest import FileSpec, GraphSpec, Manifest, VariantSpec


class Bundle:
    """An opened bundle.

    `open` checks the manifest and that every file is there, inside the bundle and of the right size; engines that are not
    are left out (`damaged_engines`). A file's hash is
    checked when its path is first asked for (`require_files` does it for a whole variant at once), so that a variant
    nobody uses costs nothing, and no path of an unchecked file is handed out.
    """

    def __init__(self, root: Path, manifest: Manifest, *, check: bool = True, progress: Progress | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self._check = check
        self._progress = progress
        self._checked: set[str] = set()
        self._cures = engine_cures(root, manifest)
        self.opened_sha256: str | None = None
        """The hash of the manifest that `open` read, before anything was set aside."""
        self.damaged_engines: dict[str, str] = {}
        """Why a set of engines that the manifest on the disk names is not in `manifest`, by its key."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check: bool = True, progress: Progress | None = None) -> Bundle:
        """Read the bundle in folder `path`. `check=False` skips every hash; the structure is always checked.

        `progress` is called while big files are hashed. Raises `BundleError`: missing, incomplete, corrupt, foreign,
        of another schema version, or naming files outside itself.
        """
        root = Path(path)
        data = read_manifest(root)
        if check:
            check_recorded_hash(root, data)
        bundle = cls(root, decode_manifest(data, where=str(root / MANIFEST_NAME)), check=check, progress=progress)
        bundle.opened_sha256 = sha256_bytes(data)
        bundle.set_damaged_engines_aside()
        bundle._require_present(bundle.manifest.files())
        return bundle

    def set_damaged_engines_aside(self, *, hashes: bool = False) -> None:
        """Engines can be built again: a set that is not whole is left out of `manifest`, and why is kept.

        With `hashes` every byte of them counts; without, only that their files are there and as long as they should be.
        """
        for key, entry in self.manifest.engines.items():
            try:
                if hashes:
                    self._require(entry.files())
                else:
                    self._require_present(entry.files())
            except BundleError as error:
                self.damaged_engines[key] = f"The engines '{key}' of {self.root} are damaged: {error}"
        whole = {key: entry for key, entry in self.manifest.engines.items() if key not in self.damaged_engines}
        self.manifest = msgspec.structs.replace(self.manifest, engines=whole)

    def left_out(self) -> dict[str, str]:
        """What to tell, by key, when a bundle or an archive is written without engines that were set aside."""
        return {key: f"Left out: {why}" for key, why in self.damaged_engines.items()}

    def variant(self, name: str) -> VariantSpec:
        """The variant's entry. Raises `InputError` naming the variants there are."""
        return _lookup(self.manifest.variants, name, "variant", str(self.root))

    def graph(self, variant: str, graph: str) -> GraphSpec:
        """The graph's entry. Raises `InputError` naming the graphs there are."""
        return _lookup(self.variant(variant).graphs, graph, "graph", f"variant '{variant}' of {self.root}")

    def graph_path(self, variant: str, graph: str) -> Path:
        """The graph's ONNX file; it and the variant's weights are checked first. Raises `BundleError`."""
        file = self.graph(variant, graph).file
        weights = self.variant(variant).weights
        self._require([file] if weights is None else [file, weights])
        return self.root / file.path

    def weights_path(self, variant: str) -> Path | None:
        """The variant's external-data file, checked; None where the graphs hold their weights themselves."""
        weights = self.variant(variant).weights
        if weights is None:
            return None
        self._require([weights])
        return self.root / weights.path

    def report_path(self, variant: str) -> Path | None:
        """The variant's report of its layers, checked; None where it has none."""
        report = self.variant(variant).report
        if report is None:
            return None
        self._require([report])
        return self.root / report.path

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer file, checked; None for a model without text."""
        if self.manifest.text is None:
            return None
        self._require([self.manifest.text.tokenizer])
        return self.root / self.manifest.text.tokenizer.path

    def files(self, variant: str | None = None, graphs: Iterable[str] | None = None) -> list[FileSpec]:
        """The files of `variant` (None: of all) with the tokenizer, each once; `graphs` limits them to those named."""
        if variant is None:
            return self.manifest.files()
        spec = self.variant(variant)
        names = list(spec.graphs if graphs is None else graphs)
        found = [self.graph(variant, name).file for name in names]
        if spec.weights is not None:
            found.append(spec.weights)
        if self.manifest.text is not None:
            found.append(self.manifest.text.tokenizer)
        return list({file.path: file for file in found}.values())

    def require_files(self, variant: str | None = None, graphs: Iterable[str] | None = None) -> None:
        """Check size and hash of `files(variant, graphs)` that were not checked yet. Raises `BundleError`."""
        self._require(self.files(variant, graphs))

    def calibration_paths(self) -> tuple[Path, Path]:
        """The calibration's summary and observations, checked. Raises `InputError` where the bundle has none."""
        spec = self.manifest.calibration
        if spec is None:
            raise InputError(f"{self.root} has no calibration. Make one: {calibrate_line(self.root)}")
        self._require([spec.summary, spec.observations])
        return self.root / spec.summary.path, self.root / spec.observations.path

    def fingerprint(self, variant: str) -> str:
        """A hash of the variant's graphs and weights: the same for the same numbers, wherever the bundle lies."""
        spec = self.variant(variant)
        files = [graph.file for graph in spec.graphs.values()] + ([spec.weights] if spec.weights else [])
        return sha256_bytes("\n".join(sorted(f"{file.path} {file.sha256}" for file in files)).encode())

    def require(self, specs: Iterable[FileSpec]) -> None:
        """Check size and hash of files that were not checked yet. Raises `BundleError`."""
        self._require(specs)

    def cure(self, spec: FileSpec) -> str:
        """What to do where the file is damaged: engines are built again, all else is copied again."""
        return self._cures.get(spec.path, COPY_AGAIN)

    def verify(self, progress: Progress | None = None) -> list[FileReport]:
        """Read and hash every file anew, whatever is remembered; see `verify_bundle`."""
        return verify_bundle(self.root, progress)

    def _require_present(self, specs: Iterable[FileSpec]) -> None:
        for spec in specs:
            raise_if_failed(self.root, examine(self.root, spec, cure=self.cure(spec)))

    def _require(self, specs: Iterable[FileSpec]) -> None:
        pending = [spec for spec in specs if spec.path not in self._checked]
        meter = Meter(self._progress, sum(spec.size_bytes for spec in pending))
        memory = HashMemory()

        def hash_of(path: Path, name: str) -> str:
            return memory.hash_of(path, meter, name=name)

        for spec in pending:
            known = hash_of if self._check else None
            raise_if_failed(self.root, examine(self.root, spec, known, cure=self.cure(spec)))
            self._checked.add(spec.path)


_Entry = TypeVar("_Entry")


def _lookup(entries: Mapping[str, _Entry], name: str, kind: str, where: str) -> _Entry:
    if name not in entries:
        raise InputError(f"There is no {kind} '{name}' in {where}; there are: {', '.join(sorted(entries)) or 'none'}.")
    return entries[name]
