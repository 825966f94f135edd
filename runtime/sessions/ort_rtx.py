"""The `ort-rtx` backend: ONNX Runtime with its TensorRT-RTX execution provider."""

from __future__ import annotations

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.ort_gpu import GpuOrtSession, open_gpu_session
from edgevqa.runtime.sessions.ort_providers import RTX


def open_session(bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> GpuOrtSession:
    """Load one graph of the bundle. The caller closes the session."""
    return open_gpu_session(bundle, variant, graph, options, RTX)
