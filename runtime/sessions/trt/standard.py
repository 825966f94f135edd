"""The `tensorrt` backend: engines of TensorRT, run by its full, lean or dispatch runtime."""

from __future__ import annotations

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.trt.opening import open_engine
from edgevqa.runtime.sessions.trt.session import EngineSession


def open_session(bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> EngineSession:
    """Load one graph's engine. The caller closes the session."""
    return open_engine(bundle, variant, graph, options, "tensorrt")
