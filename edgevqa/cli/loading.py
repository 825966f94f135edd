"""Loading a pipeline for a command, which may refuse the bundle by its manifest before a backend is measured or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevqa.cli.output import note, progress_bar
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import possible_backends


def load_pipeline(path: Path, refuse: Callable[[Manifest], None], **settings: Any) -> Pipeline:
    """The bundle in folder `path`, loaded with the fields of `PipelineOptions`; `refuse` raises where it cannot serve."""
    options = PipelineOptions.of(settings)
    possible_backends(options.backend)  # what is not installed is said before files are read
    with progress_bar("Checking") as progress:
        bundle = Bundle.open(path, check=options.check, progress=progress)
        refuse(bundle.manifest)
        return Pipeline.from_bundle(bundle, options, note=note)
