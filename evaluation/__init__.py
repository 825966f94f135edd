"""How right and how fast a bundle answers: data sets, metrics, comparison, reports.

The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevqa.evaluation.comparing import CompareOptions, Comparison, compare
    from edgevqa.evaluation.evaluating import EvaluateOptions, Evaluation, evaluate

__all__ = ["CompareOptions", "Comparison", "EvaluateOptions", "Evaluation", "compare", "evaluate"]

_HOMES = {
    "CompareOptions": "comparing",
    "Comparison": "comparing",
    "compare": "comparing",
    "EvaluateOptions": "evaluating",
    "Evaluation": "evaluating",
    "evaluate": "evaluating",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
