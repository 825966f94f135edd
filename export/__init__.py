"""From a PyTorch checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevqa.export.options import ExportOptions
    from edgevqa.export.run import Exported, export

__all__ = ["ExportOptions", "Exported", "export"]


def __getattr__(name: str) -> Any:
    if name == "ExportOptions":
        from edgevqa.export.options import ExportOptions

        return ExportOptions
    if name in ("Exported", "export"):
        from edgevqa.export import run

        return getattr(run, name)
    raise AttributeError(f"module 'edgevqa.export' has no attribute '{name}'")
