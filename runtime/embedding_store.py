"""Embeddings of pictures that were computed before, by the content of their files, in the user's cache directory."""

from __future__ import annotations

import contextlib
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.similarity import Float32s

FOLDER = "embeddings"
MOST_BYTES = 256 << 20
HASH_BYTES = 32


class EmbeddingStore:
    """What one model saw in pictures, by the SHA-256 of their files; what was kept longest goes first when it is full.

    One file for each set of weights, preprocessing and backend: nothing that changes an embedding is left out of its name.
    A cache that can be neither read nor written means no memory, silently: everything is computed again.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._known = self._read()
        self._new: dict[bytes, Float32s] = {}

    @classmethod
    def of(cls, pipeline: Pipeline) -> EmbeddingStore:
        """The store of a pipeline's image encoder."""
        bundle = pipeline.bundle
        identity = (
            bundle.fingerprint(pipeline.variant).encode(),
            msgspec.json.encode(bundle.manifest.image),
            pipeline.backend.encode(),
        )
        return cls(cache_dir() / FOLDER / f"{sha256_bytes(b' '.join(identity))}.npz")

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> Float32s:
        return self._known[key]

    def add(self, key: bytes, embedding: Float32s) -> None:
        """Keep an embedding, (width,) or (vectors, width), for as long as the store lives; `save` keeps it for good."""
        self._known[key] = self._new[key] = embedding

    def save(self) -> None:
        """Write what is new beside what other processes may have written since."""
        if not self._new:
            return
        kept = {**self._read(), **self._new}
        size = 0
        newest: dict[bytes, Float32s] = {}
        for key, embedding in reversed(list(kept.items())):
            size += embedding.nbytes + HASH_BYTES
            if size > self._most_bytes:
                break
            newest[key] = embedding
        with contextlib.suppress(OSError):
            self._write(dict(reversed(list(newest.items()))))
        self._new = {}

    def _read(self) -> dict[bytes, Float32s]:
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                keys, embeddings = found["keys"], found["embeddings"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
        if keys.dtype != np.uint8 or keys.shape != (len(embeddings), HASH_BYTES) or embeddings.dtype != np.float32:
            return {}
        return {key.tobytes(): embedding for key, embedding in zip(keys, embeddings, strict=True)}

    def _write(self, kept: Mapping[bytes, Float32s]) -> None:
        if not kept:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        keys = np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(len(kept), HASH_BYTES)
        try:
            with partial.open("xb") as stream:
                np.savez(stream, keys=keys, embeddings=np.stack(list(kept.values())))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
