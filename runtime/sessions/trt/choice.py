"""Which of a bundle's engine sets runs here: the one that fits best, else the reason why the nearest does not."""

from __future__ import annotations

import platform
from pathlib import Path

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import build_line
from edgevqa.runtime.engines import EngineRecord, Here, check_record, engine_sets, load_record
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.sessions.trt.driver import DeviceInfo
from edgevqa.runtime.sessions.trt.toolkit import Toolkit
from edgevqa.runtime.targets import TARGETS, Flavour


def place_of(toolkit: Toolkit, device: DeviceInfo) -> Here:
    """The machine, its GPU and its TensorRT, as engines are checked against them."""
    return Here(
        os=platform.system().lower(),
        arch=platform.machine(),
        compute_capability=device.compute_capability,
        device=device.name,
        flavour=toolkit.flavour,
        tensorrt_version=toolkit.version,
    )


def choose_engines(
    bundle: Bundle, variant: str, toolkit: Toolkit, place: Here, target: str | None = None
) -> tuple[str, EngineRecord]:
    """The key and the record of the engine set to run.

    Raises `BundleError` saying why the nearest set cannot run here, or which command builds one, and `InputError` for a
    target that has none.
    """
    records = {key: load_record(bundle, key) for key in _candidates(bundle, variant, toolkit.flavour, target)}
    refused: dict[str, BundleError] = {}
    for key, record in records.items():
        try:
            check_record(record, place, where=f"The engine set '{key}' of {bundle.root}", root=bundle.root)
            _check_runtime(record, toolkit, key, bundle.root)
        except BundleError as error:
            refused[key] = error
    fitting = [key for key in records if key not in refused]
    if fitting:
        best = max(fitting, key=lambda key: _likeness(records[key], place))
        return best, records[best]
    raise refused[max(records, key=lambda key: _likeness(records[key], place))]


def _candidates(bundle: Bundle, variant: str, flavour: Flavour, target: str | None) -> list[str]:
    """Engine sets of the variant: of the target where one is named, else of the flavour where there are some."""
    keys = engine_sets(bundle, variant)
    sets = bundle.manifest.engines
    if target is not None:
        named = [key for key in keys if sets[key].target == target]
        if not named:
            known = ", ".join(keys) or "none"
            raise InputError(
                f"{bundle.root} has no engines of variant '{variant}' for target '{target}'; it has: {known}. "
                f"Build them: {build_line(bundle.root, target, variant)}"
            )
        return named
    if not keys:
        others = ", ".join(sets) or "none"
        targets = " or ".join(row.name for row in TARGETS.values() if row.flavour == flavour)
        raise BundleError(
            f"{bundle.root} has no TensorRT engines of variant '{variant}'; it has: {others}. "
            f"Build them here: {build_line(bundle.root, 'T', variant)}, with T one of {targets}."
        )
    own = [key for key in keys if _flavour(sets[key].target) == flavour]
    return own or keys


def _check_runtime(record: EngineRecord, toolkit: Toolkit, key: str, root: Path) -> None:
    """What the lean and dispatch runtimes, and all of ours, cannot run."""
    again = build_line(root, record.target, record.variant)
    if record.weight_stripped:
        raise BundleError(
            f"The engines of '{key}' hold no weights, and edgevqa does not put them in when it runs. "
            f"Build them without --strip-weights: {again}"
        )
    if toolkit.kind in ("lean", "dispatch") and not record.version_compatible:
        raise BundleError(
            f"The engines of '{key}' are not version-compatible, and TensorRT's {toolkit.kind} runtime runs no others. "
            f"Build them again: {again} --version-compatible; "
            "or install the full TensorRT."
        )


def _likeness(record: EngineRecord, place: Here) -> tuple[bool, ...]:
    """How near a set is to this machine, the weightiest first; of those that fit, the one tuned for it is the greatest."""
    return (
        (record.os, record.arch) == (place.os, place.arch),
        record.flavour == place.flavour,
        record.tensorrt_version[:1] == (place.tensorrt_version or ())[:1],
        place.compute_capability in record.compute_capabilities,
        record.tensorrt_version[:3] == (place.tensorrt_version or ())[:3],
        record.hardware_compatibility == "none",
        record.device == place.device,
        not record.version_compatible,
    )


def _flavour(target: str) -> Flavour | None:
    return TARGETS[target].flavour if target in TARGETS else None
