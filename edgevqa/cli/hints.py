"""What to do next with a bundle: the line that commands end with."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines import flow_entry


def ask_line(bundle: Path, manifest: Manifest, *, precision: str | None = None) -> str:
    """The command that asks a bundle, as its model is asked; or what else it is for."""
    place = shlex.quote(str(bundle))
    chosen = "" if precision is None else f" --precision {precision}"
    if not flow_entry(manifest).answers:
        return f"Use it: edgevqa features {place} PICTURE -o features.npz{chosen}"
    words = ' "QUESTION"'
    if manifest.pipeline == "matching":
        words = ' --choices "A TEXT,ANOTHER TEXT"'
    elif manifest.text is None or not manifest.text.required:
        words = ""
    return f"Ask it: edgevqa ask {place} PICTURE{words}{chosen}"
