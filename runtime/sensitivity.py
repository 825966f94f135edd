"""What quantising each layer costs, as `edgevqa sensitivity` measured it: its form, and where this machine keeps it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.paths import cache_dir

FORMAT = 1


class Effect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What some quantised layers do to the answers, compared with the float model on the same held-out samples.

    `agreement` and `accuracy` are percent; `drop` is points of accuracy lost (of agreement where the samples have no
    answers: `accuracy` is None then) and `drop_ci95` its 95 % interval. `log_likelihood_cost` is how much less likely
    the float model's answers have become, in nats an answer; `log_likelihood_shift` is the mean of its absolute value:
    it shows harm long before an answer changes, and does not cancel out.
    """

    samples: int
    agreement: float
    accuracy: float | None
    drop: float
    drop_ci95: tuple[float, float]
    log_likelihood_cost: float
    log_likelihood_shift: float


class LayerSensitivity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer, `GRAPH/NAME`.

    `local_error` is the relative error of its output on captured inputs when it is quantised; `share` its part of the
    time of an answer (0 to 1). `only`: it alone is quantised; `all_but`: all layers but it; None where not measured.
    `harm` is what the ranking goes by, the `log_likelihood_shift` of the layer alone; `predicted` tells that it was not
    measured but comes from the local error.
    """

    layer: str
    local_error: float
    share: float
    harm: float
    predicted: bool
    only: Effect | None = None
    all_but: Effect | None = None


class SensitivityReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers of a bundle, the most harmful first. `all_quantised` is the effect of all of them together.

    `share_source` says where the shares of time come from; `warnings` what makes the figures weak.
    """

    format: int = FORMAT
    fingerprint: str
    calibration_sha256: str
    numerics: Numerics
    backend: str
    dataset: str
    seed: int
    samples: int
    seconds: float
    share_source: str
    all_quantised: Effect | None
    layers: list[LayerSensitivity]
    warnings: list[str] = []


def sensitivity_path(bundle: Bundle) -> Path:
    """Where this machine keeps the bundle's last ranking; the same for copies of the bundle. It may not exist."""
    return cache_dir() / "sensitivity" / f"{bundle.fingerprint('fp32')[:32]}.json"


def load_sensitivity(bundle: Bundle) -> SensitivityReport | None:
    """The ranking that this machine made of the bundle last, or None: never made, unreadable, or of another form."""
    try:
        return msgspec.json.decode(sensitivity_path(bundle).read_bytes(), type=SensitivityReport)
    except (OSError, msgspec.MsgspecError):
        return None


def save_sensitivity(bundle: Bundle, report: SensitivityReport) -> Path:
    """Keep the ranking in the user's cache, whole or not at all; returns its file. Raises `OSError`."""
    path = sensitivity_path(bundle)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(report))
    draft.replace(path)
    return path
