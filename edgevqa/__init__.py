"""edgevqa: a visual-question-answering model from its checkpoint to an answer on an embedded or server GPU."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
