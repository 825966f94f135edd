"""From a float bundle to FP16 and INT8 variants: observe, quantise, search, and prove the result.

The names below are imported when they are first used. No module of this package bears the name of one of its functions:
importing the module would hide the function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevqa.calibration.observation.run import Calibrated, CalibrateOptions, calibrate
    from edgevqa.calibration.quantization.run import Quantized, QuantizeOptions, quantize
    from edgevqa.calibration.search.ranking import SensitivityOptions, SensitivityReport, sensitivity

__all__ = [
    "CalibrateOptions",
    "Calibrated",
    "QuantizeOptions",
    "Quantized",
    "SensitivityOptions",
    "SensitivityReport",
    "calibrate",
    "quantize",
    "sensitivity",
]

_HOMES = {
    "CalibrateOptions": "observation.run",
    "Calibrated": "observation.run",
    "calibrate": "observation.run",
    "QuantizeOptions": "quantization.run",
    "Quantized": "quantization.run",
    "quantize": "quantization.run",
    "SensitivityOptions": "search.ranking",
    "SensitivityReport": "search.ranking",
    "sensitivity": "search.ranking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
