"""The torch-free runtime: loads a bundle and answers questions about pictures.

    from edgevqa.runtime import Pipeline

    with Pipeline.load("bundle") as pipeline:
        print(pipeline.answer("photo.jpg", "what colour is the ball?").text)

The names below are imported when they are first used, so that importing a room of it costs nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevqa.runtime.answer_stream import AnswerStream
    from edgevqa.runtime.bundle import Bundle
    from edgevqa.runtime.errors import EdgeVQAError
    from edgevqa.runtime.pipeline import Pipeline
    from edgevqa.runtime.pipelines.base import Answer, PipelineOptions

__all__ = ["Answer", "AnswerStream", "Bundle", "EdgeVQAError", "Pipeline", "PipelineOptions"]

_HOMES = {
    "Answer": "edgevqa.runtime.pipelines.base",
    "AnswerStream": "edgevqa.runtime.answer_stream",
    "Bundle": "edgevqa.runtime.bundle",
    "EdgeVQAError": "edgevqa.runtime.errors",
    "Pipeline": "edgevqa.runtime.pipeline",
    "PipelineOptions": "edgevqa.runtime.pipelines.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
