"""Engines in `edgevqa inspect`: their record, their profiles, and whether they fit this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from edgevqa.cli.output import print_json, print_pairs, print_table, print_text
from edgevqa.runtime.engines import EngineRecord, GraphEngine, Profile, check_record, decode_record, here
from edgevqa.runtime.errors import BundleError, CheckFailed, UnavailableError
from edgevqa.runtime.hashing import sha256_file
from edgevqa.runtime.machine import read_machine
from edgevqa.runtime.plans import PlanHeader, is_plan, read_whole, readable_version
from edgevqa.runtime.staging import readable_bytes

RECORD_NAME = "engine.json"


def inspect_engine_file(path: Path, *, as_json: bool) -> None:
    """Print what a plan or an engine.json says.

    Raises `BundleError` for any other file and for a plan that was cut off, `CheckFailed` where a plan is not the one
    that the engine.json beside it names, `UnavailableError` where what is whole does not fit this machine.
    """
    if path.suffix == ".json" and not is_plan(path):
        only = decode_record(path.read_bytes(), where=str(path))
        fit = _fit(only, path)
        if as_json:
            print_json({"record": only, **fit.as_json()})
        else:
            _print_record(str(path), only)
        _end(fit, quiet=as_json)
        return
    header = read_whole(path)
    beside = path.parent / RECORD_NAME
    record = decode_record(beside.read_bytes(), where=str(beside)) if beside.is_file() else None
    verdict, damage = _hash_verdict(path, record)
    fit = _Fit() if record is None else _fit(record, beside)
    if as_json:
        found = {"path": str(path), "header": header, "size_bytes": path.stat().st_size, "record": record}
        print_json({**found, "file_hash": verdict, **fit.as_json()})
        if damage:
            raise typer.Exit(CheckFailed.exit_code)
    else:
        _print_plan(path, header, verdict)
        if record is not None:
            _print_record(str(beside), record)
    if damage:
        raise CheckFailed(f"{path} {damage}. Build it again: edgevqa build BUNDLE --target TARGET")
    _end(fit, quiet=as_json or record is None)


def _print_plan(path: Path, header: PlanHeader, verdict: str) -> None:
    print_pairs(
        [
            ("plan", f"{path}, {readable_bytes(path.stat().st_size)}"),
            ("flavour", header.flavour),
            ("version", readable_version(header.version)),
            ("file hash", verdict),
        ]
    )


def print_engines(title: str, record: EngineRecord) -> None:
    """A record as pairs and a table of its engines, and whether they fit this machine."""
    _print_record(title, record)
    fit = _fit(record, Path(title))
    print_text(fit.text if fit.refused is None else f"Does not fit this machine: {fit.refused}")


def _print_record(title: str, record: EngineRecord) -> None:
    print_text("")
    print_pairs([("engines", title), *_pairs(record)])
    rows = [
        (
            name,
            readable_bytes(engine.size_bytes),
            f"{engine.seconds:.1f}",
            f"{engine.peak_memory_mb:,.0f}",
            "\n".join(_profile(profile) for profile in engine.profiles),
            high_text(engine),
        )
        for name, engine in record.graphs.items()
    ]
    print_table(("graph", ">size", ">built in s", ">peak MB", "profiles (min..opt..max)", "in FP32"), rows)


def high_text(engine: GraphEngine) -> str:
    """What an FP16 or INT8 engine computes in FP32: its matrix products by name, the rest counted."""
    counted = ", ".join(f"{count} {kind.lower()}" for kind, count in engine.high_operators.items())
    named = ", ".join(engine.high_layers)
    return f"{named} ({counted})" if named and counted else named or counted or "-"


def _pairs(record: EngineRecord) -> Iterator[tuple[str, str]]:
    yield "built by", f"{record.flavour} {readable_version(record.tensorrt_version)} on {record.os}, {record.arch}"
    yield "for", f"compute capability {', '.join(record.compute_capabilities) or 'of any GPU'}"
    yield "device", record.device or "none was asked"
    yield "variant", f"{record.variant} ({record.precision}, {record.numerics})"
    if record.calibration_sha256:
        yield "calibration", record.calibration_sha256
    flags = [
        name
        for name, is_set in (
            ("version-compatible", record.version_compatible),
            ("weight-stripped", record.weight_stripped),
            ("refittable", record.refittable),
            (f"DLA core {record.dla_core}", record.dla_core is not None),
            (f"hardware: {record.hardware_compatibility}", record.hardware_compatibility != "none"),
        )
        if is_set
    ]
    yield "flags", ", ".join(flags) or "none"
    yield "options", ", ".join(f"{name} {value}" for name, value in record.options.items())


def _profile(profile: Profile) -> str:
    """The ranges of the axes that move, with the input they belong to."""
    moving = [
        f"{name} {_shape(each.min)}..{_shape(each.opt)}..{_shape(each.max)}"
        for name, each in profile.items()
        if each.min != each.max and not name.partition(".")[2].isdecimal()
    ]
    return "; ".join(moving) or "fixed shapes"


def _shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Whether engines may run here: `refused` says why they cannot, `text` what else is to be said of it."""

    text: str = ""
    known: bool = False
    refused: BundleError | None = None

    def as_json(self) -> dict[str, object]:
        """`fits` for people, `fits_this_machine` for programs: null where this machine shows no GPU."""
        told = self.text if self.refused is None else f"Does not fit this machine: {self.refused}"
        return {
            "fits": told or None,
            "fits_this_machine": self.known if self.known or self.refused is not None else None,
        }


def _fit(record: EngineRecord, path: Path) -> _Fit:
    place = here(read_machine())
    try:
        check_record(record, place, where=str(path))
    except BundleError as error:
        return _Fit(refused=error)
    if place.compute_capability is None:
        return _Fit(text="This machine shows no NVIDIA GPU, which is needed to run them.")
    return _Fit(text="Nothing speaks against this machine; TensorRT has the last word.", known=True)


def _end(fit: _Fit, *, quiet: bool = False) -> None:
    """Raise `UnavailableError` for engines that are made for another machine; else say what there is to say."""
    if fit.refused is not None:
        raise UnavailableError(f"They do not fit this machine: {fit.refused}") from fit.refused
    if not quiet:
        print_text(fit.text)


def _hash_verdict(path: Path, record: EngineRecord | None) -> tuple[str, str]:
    """What is said of the file's hash, and what is wrong with the file, if anything."""
    engine = None if record is None else record.graphs.get(path.stem)
    if engine is None:
        return "not recorded", ""
    if sha256_file(path) == engine.sha256:
        return "as recorded", ""
    return f"DIFFERS from {RECORD_NAME}: damaged or replaced", f"is not the engine that {RECORD_NAME} names"
