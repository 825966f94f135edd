"""Pictures of a folder that fit a text best, by the embeddings of a dual encoder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgevqa.runtime.embedding_store import EmbeddingStore
from edgevqa.runtime.errors import ConfigError, ImageError, InputError, QuestionError
from edgevqa.runtime.images import Rgb, load_image
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.similarity import Float32s, cosines, log_sigmoid, logits

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SAVE_EVERY_S = 20.0
Advance = Callable[[str, int, int], None]
"""Called with what is being done, pictures done and pictures in all."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A picture (its path below the folder) and how well it fits; `probability` is None where the model has none."""

    image: str
    cosine: float
    probability: float | None


class TextHits(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that fit a text best, the best first.

    `truncated_text` tells that the end of the text was cut, `unknown_tokens` how many of its tokens the vocabulary lacks.
    """

    text: str
    hits: list[Hit]
    truncated_text: bool = False
    unknown_tokens: int = 0


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """A file that looked like a picture, and why it was passed over."""

    image: str
    error: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found. Of `pictures` that were compared, `remembered` were not seen by the model again."""

    results: list[TextHits]
    pictures: int
    remembered: int
    unreadable: list[Unreadable]


def find_pictures(folder: Path) -> list[str]:
    """Names of the pictures in a folder and its subfolders, relative to it and sorted; hidden ones are left out.

    Links to folders are not followed. Raises `InputError` where there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        wrong = "is a file; expected a folder of pictures" if folder.exists() else "does not exist"
        raise InputError(f"The folder {folder} {wrong}. Check the path.")
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        pictures = (name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        paths = (Path(place, name) for name in pictures)
        names += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    if not names:
        raise InputError(f"{folder} has no picture; looked for {', '.join(SUFFIXES)}.")
    return sorted(names)


def search(
    pipeline: Pipeline, folder: Path, texts: Sequence[str], *, top: int = 5, advance: Advance | None = None
) -> Found:
    """The `top` pictures of `folder` for each text.

    Embeddings are remembered by the files' content (`EmbeddingStore`), also when it is interrupted. Raises `InputError` for
    a folder without readable pictures, `QuestionError` for an empty text, and `ConfigError` for a model without embeddings.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; expected a whole number of at least 1.")
    if not texts or not all(text.strip() for text in texts):
        raise QuestionError("A text to search for is empty. Describe in words what the picture shows.")
    names = find_pictures(folder)
    words, asked = pipeline.embed_texts(texts), [pipeline.questions.question(text) for text in texts]
    store = EmbeddingStore.of(pipeline)
    reader = _Reader(pipeline, store)
    try:
        reader.read(folder, names, advance or (lambda what, done, total: None))
    finally:
        store.save()
    if not reader.found:
        first = reader.unreadable[0]
        raise InputError(f"None of the {len(names)} pictures in {folder} can be read. {first.image}: {first.error}")
    return Found(
        results=[
            TextHits(text=text, hits=hits, truncated_text=read.truncated, unknown_tokens=read.unknown_tokens)
            for text, read, hits in zip(texts, asked, _rank(pipeline, reader, words, top), strict=True)
        ],
        pictures=len(reader.found),
        remembered=reader.remembered,
        unreadable=reader.unreadable,
    )


class _Reader:
    """Embeds the pictures of a folder, a batch at a time; what the store knows is not embedded again."""

    def __init__(self, pipeline: Pipeline, store: EmbeddingStore) -> None:
        self.found: dict[str, bytes] = {}
        self.unreadable: list[Unreadable] = []
        self.remembered = 0
        self.store = store
        self._pipeline = pipeline
        self._waiting: dict[bytes, Rgb] = {}
        self._fresh: set[bytes] = set()

    def read(self, folder: Path, names: Sequence[str], advance: Advance) -> None:
        """Fill `found` with the key of every picture, and the store with its embedding."""
        saved = time.monotonic()
        for done, name in enumerate(names):
            advance("reading pictures", done, len(names))
            try:
                self._take(folder, name)
            except ImageError as error:
                self._pass_over(name, error)
            if len(self._waiting) >= self._pipeline.options.max_batch:
                self._embed()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.store.save()
                saved = time.monotonic()
        self._embed()
        advance("reading pictures", len(names), len(names))

    def _take(self, folder: Path, name: str) -> None:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ImageError(f"it cannot be opened: {error.strerror}.") from error
        key = hashlib.sha256(data).digest()
        if key in self.store:
            self.remembered += key not in self._fresh
        elif key not in self._waiting:
            self._waiting[key] = self._decode(data)
        self.found[name] = key

    def _decode(self, data: bytes) -> Rgb:
        try:
            return load_image(data, max_pixels=self._pipeline.options.max_pixels)
        except ImageError as error:
            bytes_given = f"the image bytes ({len(data):,})"  # the file's name stands before the message
            raise ImageError(str(error).replace(f"{bytes_given}: ", "").replace(bytes_given, "it")) from error

    def _embed(self) -> None:
        waiting, self._waiting = self._waiting, {}
        try:
            self._add(waiting)
        except ImageError:  # one that can be decoded, but not prepared: which one?
            for key, rgb in waiting.items():
                try:
                    self._add({key: rgb})
                except ImageError as error:
                    for name in [name for name, each in self.found.items() if each == key]:
                        self._pass_over(name, error)

    def _add(self, waiting: dict[bytes, Rgb]) -> None:
        embeddings = self._pipeline.embed_images(waiting.values())
        for key, embedding in zip(waiting, embeddings, strict=True):
            self.store.add(key, embedding)
        self._fresh |= set(waiting)

    def _pass_over(self, name: str, error: ImageError) -> None:
        self.found.pop(name, None)
        self.unreadable.append(Unreadable(image=_shown(name), error=str(error)))

    def embeddings(self) -> Float32s:
        """Of the pictures of `found`, in its order."""
        return np.stack([self.store[key] for key in self.found.values()])


def _rank(pipeline: Pipeline, reader: _Reader, words: Float32s, top: int) -> list[list[Hit]]:
    """The best pictures for every row of `words`."""
    names, matching = list(reader.found), pipeline.manifest.matching
    similarity = cosines(reader.embeddings(), words)  # (pictures, texts)
    known = matching is not None and matching.activation == "sigmoid"
    chances = np.exp(log_sigmoid(logits(similarity, matching))) if matching is not None and known else None
    return [
        [
            Hit(
                image=_shown(names[row]),
                cosine=float(similarity[row, column]),
                probability=None if chances is None else float(chances[row, column]),
            )
            for row in np.argsort(-similarity[:, column], kind="stable")[:top]
        ]
        for column in range(similarity.shape[1])
    ]


def _shown(name: str) -> str:
    """A file's name as text that can be written anywhere, also where its bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")
