"""Engines in `edgevqa inspect`: their record, their profiles, and whether they fit this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from edgevqa.cli.output import print_json, print_pairs, print_table, print_text
from edgevqa.runtime.engines import EngineRecord, GraphEngine, Profile, check_record, decode_record, here
from edgevqa.runtime.errors import BundleError, CheckFailed
from edgevqa.runtime.hashing import sha256_file
from edgevqa.runtime.machine import read_machine
from edgevqa.runtime.plans import is_plan, read_header, readable_version
from edgevqa.runtime.staging import readable_bytes

RECORD_NAME = "engine.json"


def inspect_engine_file(path: Path, *, as_json: bool) -> None:
    """Print what a plan or an engine.json says. Raises `BundleError` for any other file."""
    if path.suffix == ".json" and not is_plan(path):
        only = decode_record(path.read_bytes(), where=str(path))
        if as_json:
            print_json({"record": only, "fits": _fits(only, path)})
        else:
            print_engines(str(path), only)
        return
    header = read_header(path)
    beside = path.parent / RECORD_NAME
    record = decode_record(beside.read_bytes(), where=str(beside)) if beside.is_file() else None
    verdict, damage = _hash_verdict(path, record)
    if as_json:
        found = {"path": str(path), "header": header, "size_bytes": path.stat().st_size, "record": record}
        print_json({**found, "file_hash": verdict})
        if damage:
            raise typer.Exit(CheckFailed.exit_code)
        return
    print_pairs(
        [
            ("plan", f"{path}, {readable_bytes(path.stat().st_size)}"),
            ("flavour", header.flavour),
            ("version", readable_version(header.version)),
            ("file hash", verdict),
        ]
    )
    if record is not None:
        print_engines(str(beside), record)
    if damage:
        raise CheckFailed(f"{path} {damage}. Build it again: edgevqa build BUNDLE --target TARGET")


def print_engines(title: str, record: EngineRecord) -> None:
    """A record as pairs and a table of its engines."""
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
    print_text(_fits(record, Path(title)))


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


def _fits(record: EngineRecord, path: Path) -> str:
    place = here(read_machine())
    try:
        check_record(record, place, where=str(path))
    except BundleError as error:
        return f"Does not fit this machine: {error}"
    if place.compute_capability is None:
        return "This machine shows no NVIDIA GPU, which is needed to run them."
    return "Nothing speaks against this machine; TensorRT has the last word."


def _hash_verdict(path: Path, record: EngineRecord | None) -> tuple[str, str]:
    """What is said of the file's hash, and what is wrong with the file, if anything."""
    engine = None if record is None else record.graphs.get(path.stem)
    if engine is None:
        return "not recorded", ""
    if sha256_file(path) == engine.sha256:
        return "as recorded", ""
    return f"DIFFERS from {RECORD_NAME}: damaged or replaced", f"is not the engine that {RECORD_NAME} names"
