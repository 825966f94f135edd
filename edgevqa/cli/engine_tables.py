"""Engines in `edgevqa inspect`: their record, their profiles, and whether they fit this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevqa.cli.output import print_json, print_pairs, print_table, print_text
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import MANIFEST_NAME, build_line, decode_manifest, read_manifest
from edgevqa.runtime.engines import (
    NO_BUNDLE,
    RECORD_NAME,
    EngineRecord,
    GraphEngine,
    Profile,
    check_record,
    here,
    plan_fault,
    read_record,
    stale_text,
)
from edgevqa.runtime.errors import BundleError, CheckFailed, EdgeVQAError, UnavailableError
from edgevqa.runtime.hashing import sha256_file
from edgevqa.runtime.machine import read_machine
from edgevqa.runtime.plans import PlanHeader, is_plan, read_whole, readable_version
from edgevqa.runtime.staging import readable_bytes

LAYERS_SHOWN = 4
_BUNDLE_ABOVE = 3  # engines/TARGET/VARIANT/engine.json: the bundle is three folders above the one it lies in
_WORST_FIRST: tuple[type[EdgeVQAError], ...] = (BundleError, CheckFailed, UnavailableError)


def inspect_engine_file(path: Path, *, as_json: bool) -> None:
    """Print what a plan or an engine.json says, and of an engine.json how the engines beside it are that it names.

    Raises `BundleError` for any other file and for a plan that was cut off, `CheckFailed` where a plan is missing, not
    the one that its engine.json names, or of other weights than the bundle around it has now, `UnavailableError` where
    engines do not fit this machine. Where several apply, all are told by the first of these.
    """
    if path.suffix == ".json" and not is_plan(path):
        _inspect_record(path, as_json=as_json)
    else:
        _inspect_plan(path, as_json=as_json)


def _inspect_record(path: Path, *, as_json: bool) -> None:
    record = read_record(path)
    fit = _fit(record, str(path), _root(path))
    files = {name: _examine(path.parent / engine.file, engine, record) for name, engine in record.graphs.items()}
    stale = _stale(path, record)
    if as_json:
        told = {name: file.told for name, file in files.items()}
        print_json({"record": record, "file_hashes": told, "stale": stale, **fit.as_json()})
    else:
        _print_record(str(path), record)
        if files and not any(file.wrong for file in files.values()):
            print_text("Every engine that it names lies beside it, as recorded.")
    wrong = [file.wrong for file in files.values() if file.wrong]
    _end(wrong + ([CheckFailed(stale)] if stale else []), fit, quiet=as_json)


def _inspect_plan(path: Path, *, as_json: bool) -> None:
    header = read_whole(path)
    beside = path.parent / RECORD_NAME
    record = read_record(beside) if beside.is_file() else None
    engine = None if record is None else record.graphs.get(path.stem)
    file = _File("not recorded") if record is None or engine is None else _examine(path, engine, record)
    stale = None if record is None else _stale(beside, record, path.stem)
    fit = _Fit() if record is None else _fit(record, str(beside), _root(beside))
    if as_json:
        found = {"path": str(path), "header": header, "size_bytes": path.stat().st_size, "record": record}
        print_json({**found, "file_hash": file.told, "stale": stale, **fit.as_json()})
    else:
        _print_plan(path, header, file.told)
        if record is not None:
            _print_record(str(beside), record)
    wrong = [file.wrong] if file.wrong else []
    _end(wrong + ([CheckFailed(stale)] if stale else []), fit, quiet=as_json or record is None)


def _stale(path: Path, record: EngineRecord, graph: str | None = None) -> str | None:
    """Whether engines (None: all) are older than the bundle that their engine.json lies in, if it lies in one."""
    root = _root(path)
    if root is None:
        return None
    try:
        bundle = Bundle(root, decode_manifest(read_manifest(root), where=str(root / MANIFEST_NAME)))
    except BundleError:
        return None  # 'inspect' of the bundle tells; nothing is known of the engine
    return stale_text(bundle, record, None if graph is None else [graph])


def _root(path: Path) -> Path | None:
    """The folder of the bundle that an engine or engine.json lies in, if it lies in one."""
    places = path.resolve().parents  # as given it may count `..`, and the folders that links lie in
    root = places[_BUNDLE_ABOVE] if len(places) > _BUNDLE_ABOVE else None
    return root if root is not None and (root / MANIFEST_NAME).is_file() else None


def _print_plan(path: Path, header: PlanHeader, verdict: str) -> None:
    print_pairs(
        [
            ("plan", f"{path}, {readable_bytes(path.stat().st_size)}"),
            ("flavour", header.flavour),
            ("version", readable_version(header.version)),
            ("file hash", verdict),
        ]
    )


def print_engines(title: str, record: EngineRecord, root: Path | None = None) -> None:
    """A record as pairs and a table of its engines, and whether they fit this machine; `root` is their bundle's folder."""
    _print_record(title, record)
    fit = _fit(record, title, root)
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
    for line in inspected_lines(record):
        print_text(line)


def inspected_lines(record: EngineRecord) -> Iterator[str]:
    """What TensorRT's inspector told of the engines, where a GPU could load them: their own layers, fused as they run."""
    for name, engine in record.graphs.items():
        if engine.fp32_layers is None:
            continue
        shown = ", ".join(engine.fp32_layers[:LAYERS_SHOWN])
        more = len(engine.fp32_layers) - LAYERS_SHOWN
        told = f"{len(engine.fp32_layers)} of its layers: {shown}{f' and {more} more' if more > 0 else ''}"
        yield f"{name}: TensorRT's inspector finds FP32 given out by {told if engine.fp32_layers else 'none of its layers'}"


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


def _fit(record: EngineRecord, where: str, root: Path | None) -> _Fit:
    place = here(read_machine())
    try:
        check_record(record, place, where=where, root=root or NO_BUNDLE)
    except BundleError as error:
        return _Fit(refused=error)
    if place.compute_capability is None:
        return _Fit(text="This machine shows no NVIDIA GPU, which is needed to run them.")
    return _Fit(text="Nothing speaks against this machine; TensorRT has the last word.", known=True)


@dataclass(frozen=True)
class _File:
    """An engine's file beside its engine.json: what is said of its hash, and what is wrong with it, if anything."""

    told: str
    wrong: EdgeVQAError | None = None


def _examine(path: Path, engine: GraphEngine, record: EngineRecord) -> _File:
    root = _root(path) or NO_BUNDLE
    again = f"Copy it again, or build it again: {build_line(root, record.target, record.variant)}"
    if not path.is_file():
        return _File("missing", CheckFailed(f"{path} is missing: {RECORD_NAME} names it. {again}"))
    try:
        header = read_whole(path)
    except BundleError as error:
        return _File("cut off, or no engine", error)
    found = path.stat().st_size
    if header.size_bytes is None and found < engine.size_bytes:  # such a header cannot tell, so the record does
        sizes = f"{path} has {found:,} bytes; {RECORD_NAME} says {engine.size_bytes:,}"
        return _File("cut off", BundleError(f"{sizes}: it was cut off. {again}"))
    if sha256_file(path) == engine.sha256:
        fault = plan_fault(path, header, record, root)
        told = "as recorded" if fault is None else f"as recorded, but {RECORD_NAME} names another version of TensorRT"
        return _File(told, None if fault is None else CheckFailed(fault))
    wrong = CheckFailed(f"{path} is not the engine that {RECORD_NAME} names. {again}")
    return _File(f"DIFFERS from {RECORD_NAME}: damaged or replaced", wrong)


def _end(damage: Sequence[EdgeVQAError], fit: _Fit, *, quiet: bool = False) -> None:
    """Raise what is wrong with the files, and `UnavailableError` for another machine's; else say what there is to say."""
    wrong = list(damage)
    if fit.refused is not None:
        wrong.append(UnavailableError(f"They do not fit this machine: {fit.refused}"))
    for kind in _WORST_FIRST:
        if any(isinstance(error, kind) for error in wrong):
            wrong.sort(key=lambda error: [isinstance(error, each) for each in _WORST_FIRST].index(True))
            raise kind("\n".join(map(str, wrong)))
    if not quiet:
        print_text(fit.text)
