"""edgevqa: a visual-question-answering model from its checkpoint to an answer on an embedded or server GPU."""

from __future__ import annotations

import os

# ONNX Runtime queues and sends usage data unless it is told not to; set before anything imports it, and for child processes.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__"]

__version__ = "0.1.0"
