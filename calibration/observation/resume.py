"""What an interrupted calibration had observed, kept in the user's cache until the calibration is done."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgevqa
from edgevqa.calibration.observation.observers import BINS, ROWS, State
from edgevqa.calibration.observation.samples import CalibrationSet
from edgevqa.calibration.observation.statistics import FORMAT, VARIANT
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.paths import cache_dir

FOLDER = "calibrations"
DONE = "done"
OLD_S = 7 * 24 * 3600.0  # what nobody came back to for so long is removed


class SavedState:
    """The state of one calibration: of these float32 graphs, with these samples, this seed and this edgevqa.

    A cache that cannot be read or written means that nothing is kept, silently.
    """

    def __init__(self, bundle: Bundle, chosen: CalibrationSet) -> None:
        parts = (edgevqa.__version__, FORMAT, BINS, ROWS, bundle.fingerprint(VARIANT), chosen.sha256, chosen.seed)
        key = sha256_bytes(" ".join(map(str, parts)).encode())
        self.path = cache_dir() / FOLDER / f"{key[:32]}.npz"

    def load(self) -> tuple[int, dict[str, State]]:
        """How many groups of samples were done, and what the observers of each graph knew; (0, {}) where nothing was."""
        states: dict[str, State] = {}
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                for name in file.files:
                    graph, slash, key = name.partition("/")
                    if slash:
                        states.setdefault(graph, {})[key] = file[name]
                return int(file[DONE]), states
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0, {}

    def save(self, done: int, states: dict[str, State]) -> None:
        """Keep the states of all graphs' observers after `done` groups of samples, whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {DONE: np.array(done)}
        for graph, state in states.items():
            arrays |= {f"{graph}/{key}": array for key, array in state.items()}
        draft = self.path.with_name(f"{self.path.stem}.{os.getpid()}.draft")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_old()
            try:
                with draft.open("wb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
                draft.replace(self.path)
            finally:
                draft.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget it: the calibration is done."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _drop_old(self) -> None:
        for path in self.path.parent.iterdir():
            if time.time() - path.stat().st_mtime > OLD_S:
                path.unlink(missing_ok=True)
