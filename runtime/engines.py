"""engine.json: what an engine was built from and for, and whether it may run here. No TensorRT is needed to check it."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import build_line, unreadable
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.machine import Machine
from edgevqa.runtime.manifest import Numerics, Precision, TensorSpec
from edgevqa.runtime.paths import check_relative
from edgevqa.runtime.plans import PlanHeader, Version, read_header, readable_version
from edgevqa.runtime.targets import Flavour

FORMAT = 1
RECORD_NAME = "engine.json"
RECORD_LIMIT_BYTES = 64 << 20
NO_BUNDLE = Path("BUNDLE")
"""In the commands that errors advise, where it is not known which bundle engines belong to."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, keyword-only and strict."""


class ShapeRange(_Record, frozen=True, kw_only=True):
    """What one input's shape may be within a profile; each as long as the tensor's rank."""

    min: list[int]
    opt: list[int]
    max: list[int]


Profile = dict[str, ShapeRange]
"""Ranges by input name; TensorRT takes shapes within the ranges of the profile that was chosen."""


class GraphEngine(_Record, frozen=True, kw_only=True):
    """One engine, and what the strongly typed graph says of it.

    `high_layers` are the matrix products and normalisations that stay FP32 in an FP16 or INT8 engine; `high_operators`
    counts all operators that do, by TensorRT's type. `fp32_layers` are the finished engine's own layers, fused as TensorRT
    fused them, that give out FP32, as its inspector tells; None where no GPU could load it, or all is FP32.

    `weights_sha256` is that of the variant's external data, None where the graph holds its weights. `peak_memory_mb` is
    the building process's highest resident size, in MB of 10^6 bytes.
    """

    file: str
    sha256: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    onnx_sha256: str
    weights_sha256: str | None
    profiles: list[Profile]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    high_layers: list[str]
    high_operators: dict[str, int] = {}
    fp32_layers: list[str] | None = None
    seconds: float
    peak_memory_mb: float


class EngineRecord(_Record, frozen=True, kw_only=True):
    """The whole of engine.json: one build of one variant for one target.

    `compute_capabilities` are those that the engines run on ("8.7"); `device` is the GPU that they were tuned on, None
    where none was asked. `options` are the builder's, as they were given.
    """

    format: int
    target: str
    variant: str
    precision: Precision
    numerics: Numerics
    flavour: Flavour
    tensorrt_version: Version
    os: str
    arch: str
    device: str | None
    compute_capabilities: list[str]
    hardware_compatibility: str
    version_compatible: bool
    weight_stripped: bool
    refittable: bool
    dla_core: int | None
    driver: str | None
    jetpack: str | None
    l4t: str | None
    calibration_sha256: str | None
    options: dict[str, int | float | str | bool | None]
    graphs: dict[str, GraphEngine]


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the TensorRT that engines are to run on; None where it is not known, which refuses nothing."""

    os: str
    arch: str
    compute_capability: str | None = None
    device: str | None = None
    flavour: Flavour | None = None
    tensorrt_version: Version | None = None


def encode_record(record: EngineRecord) -> bytes:
    """The record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_record(data: bytes, *, where: str) -> EngineRecord:
    """Read engine.json. Raises `BundleError` for what is broken, foreign, of another format, or names files elsewhere."""
    try:
        record = msgspec.json.decode(data, type=EngineRecord)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{where} is no engine record: {error}. Build the engines again.") from error
    if record.format != FORMAT:
        raise BundleError(f"{where} has format {record.format}; this edgevqa reads {FORMAT}. Build the engines again.")
    for engine in record.graphs.values():
        check_relative(engine.file, where=where)
        if "/" in engine.file:
            raise BundleError(
                f"{where} names the file {engine.file!r}; expected the name of a file beside it, such as 'x.engine'. "
                "Do not use it: build the engines again."
            )
    return record


def read_record(path: Path) -> EngineRecord:
    """The engine.json at `path`. Raises `BundleError` as `decode_record`, and for one that is far too big to be one."""
    try:
        with path.open("rb") as stream:
            data = stream.read(RECORD_LIMIT_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > RECORD_LIMIT_BYTES:
        raise BundleError(
            f"{path} is over {RECORD_LIMIT_BYTES:,} bytes; expected an {RECORD_NAME} that 'edgevqa build' wrote. "
            "It was not read: give another file."
        )
    return decode_record(data, where=str(path))


def here(machine: Machine) -> Here:
    """The machine at hand, without asking a TensorRT: its system and its first GPU."""
    gpu = machine.gpus[0] if machine.gpus else None
    return Here(
        os=platform.system().lower(),
        arch=machine.architecture,
        # JetPack's nvidia-smi lists the GPU, and does not tell its capability
        compute_capability=(gpu.compute_capability if gpu else None) or _jetson_capability(machine),
        device=gpu.name if gpu else None,
    )


def engine_sets(bundle: Bundle, variant: str) -> list[str]:
    """Keys of the manifest's engine sets of a variant."""
    return [key for key, entry in bundle.manifest.engines.items() if entry.variant == variant]


def load_record(bundle: Bundle, key: str) -> EngineRecord:
    """The record of an engine set. Raises `InputError` naming the sets there are."""
    entry = _lookup(bundle.manifest.engines, key, bundle)
    path = bundle.root / entry.record.path
    bundle.require([entry.record])
    return read_record(path)


def check_record(record: EngineRecord, place: Here, *, where: str, root: Path = NO_BUNDLE) -> None:
    """Raise `BundleError` that says why the engines of the bundle at `root` cannot run at `place`, and what to do.

    Rules (TensorRT's support matrix): one version, operating system and GPU architecture; a version-compatible engine
    also loads in newer minors and in the next major; `ampere_plus` loads on compute capability 8.0 and up; TensorRT-RTX
    engines never cross a release.
    """
    again = f"Build them here: {build_line(root, record.target, record.variant)}"
    if (record.os, record.arch) != (place.os, place.arch):
        raise BundleError(
            f"{where} was built for {record.os} on {record.arch}; this is {place.os} on {place.arch}. {again}"
        )
    if place.flavour is not None and place.flavour != record.flavour:
        raise BundleError(f"{where} is for {record.flavour}; what runs here is {place.flavour}. {again}")
    if place.tensorrt_version is not None and not _version_fits(record, place.tensorrt_version):
        raise BundleError(
            f"{where} was built by {record.flavour} {readable_version(record.tensorrt_version)}; "
            f"here is {readable_version(place.tensorrt_version)}. {again}"
        )
    if place.compute_capability is not None and not capability_fits(record, place.compute_capability):
        raise BundleError(
            f"{where} was built for compute capability {', '.join(record.compute_capabilities)}; this GPU "
            f"{f'({place.device}) ' if place.device else ''}has {place.compute_capability}. {again}"
        )


def check_engine(bundle: Bundle, key: str, graph: str, record: EngineRecord) -> Path:
    """The path of a graph's engine, after everything that can be checked without TensorRT.

    Raises `BundleError`: a damaged file, a plan of another flavour or version than recorded, or one that was built from
    another graph or other weights than the bundle has now.
    """
    entry, engine = _lookup(bundle.manifest.engines, key, bundle), record.graphs.get(graph)
    if engine is None or graph not in entry.engines:
        again = build_line(bundle.root, entry.target, entry.variant)
        raise BundleError(f"{key} in {bundle.root} has no engine of '{graph}'. Build it again: {again}")
    bundle.require([entry.engines[graph]])
    path = bundle.root / entry.engines[graph].path
    fault = plan_fault(path, read_header(path), record, bundle.root) or stale_text(bundle, record, [graph])
    if fault is not None:
        raise BundleError(fault)
    return path


def plan_fault(path: Path, header: PlanHeader, record: EngineRecord, root: Path = NO_BUNDLE) -> str | None:
    """What is wrong with a plan whose header says another flavour or version than its record; None where nothing is."""
    if (header.flavour, header.version) == (record.flavour, record.tensorrt_version):
        return None
    return (
        f"{path} is a plan of {header.flavour} {readable_version(header.version)}; its {RECORD_NAME} says "
        f"{record.flavour} {readable_version(record.tensorrt_version)}. Build the engines again: "
        f"{build_line(root, record.target, record.variant)}"
    )


def stale_graphs(bundle: Bundle, record: EngineRecord) -> list[str]:
    """The graphs whose engines were built from another graph or other weights than the bundle has now."""
    variant = bundle.manifest.variants.get(record.variant)
    if variant is None:
        return list(record.graphs)
    weights = None if variant.weights is None else variant.weights.sha256
    now = {name: (graph.file.sha256, weights) for name, graph in variant.graphs.items()}
    return [name for name, built in record.graphs.items() if now.get(name) != (built.onnx_sha256, built.weights_sha256)]


def stale_text(bundle: Bundle, record: EngineRecord, graphs: Collection[str] | None = None) -> str | None:
    """Says that engines are older than what they were built from, and what to do; None where they are not.

    `graphs` are those that are asked about (None: all).
    """
    stale = [name for name in stale_graphs(bundle, record) if graphs is None or name in graphs]
    if not stale:
        return None
    if record.variant not in bundle.manifest.variants:
        return f"The engines for {record.target} are of variant '{record.variant}', which {bundle.root} no longer has."
    which = f" ({', '.join(stale)})" if len(stale) < len(record.graphs) else ""
    return (
        f"The engines for {record.target}{which} were built from other graphs or weights than variant '{record.variant}' "
        f"of {bundle.root} has now: they are not run. Build them again: "
        f"{build_line(bundle.root, record.target, record.variant)}"
    )


def stale_engines(bundle: Bundle, variants: Collection[str] | None = None) -> dict[str, str]:
    """Why engine sets cannot be run with what the bundle has now, and what to do, by their keys.

    `variants`: sets of these alone. Those that are damaged are in `bundle.damaged_engines`.
    """
    found: dict[str, str] = {}
    for key, entry in bundle.manifest.engines.items():
        if variants is not None and entry.variant not in variants:
            continue
        try:
            told = stale_text(bundle, load_record(bundle, key))
        except BundleError as error:
            told = str(error)
        if told is not None:
            found[key] = told
    return found


def capability_fits(record: EngineRecord, capability: str) -> bool:
    """Whether engines run on a GPU of `capability` ("8.7")."""
    if capability in record.compute_capabilities or not record.compute_capabilities:
        return True
    built = [_numbers(each) for each in record.compute_capabilities]
    if record.hardware_compatibility == "ampere_plus":
        return _numbers(capability) >= (8, 0)
    # TensorRT-RTX compiles for the GPU when it loads: engines for 12.0 serve later ones too
    return record.flavour == "tensorrt-rtx" and max(built) >= (12, 0) and _numbers(capability) >= max(built)


def _version_fits(record: EngineRecord, version: Version) -> bool:
    built = record.tensorrt_version
    if version[3] == 0:  # its Python does not tell the build, which TensorRT compares itself when it loads a plan
        built = (*built[:3], 0)
    if record.flavour == "tensorrt-rtx" or not record.version_compatible:
        return version == built
    return version >= built and version[0] - built[0] <= 1


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _jetson_capability(machine: Machine) -> str | None:
    if machine.jetson is None:
        return None
    model = machine.jetson.model.lower()
    return "8.7" if "orin" in model else "11.0" if "thor" in model else None


_Entry = TypeVar("_Entry")


def _lookup(entries: dict[str, _Entry], key: str, bundle: Bundle) -> _Entry:
    if key in bundle.damaged_engines:
        raise BundleError(bundle.damaged_engines[key])
    if key not in entries:
        known = ", ".join(sorted(entries)) or "none"
        target, _, variant = key.partition("/")
        raise InputError(
            f"There are no engines '{key}' in {bundle.root}; there are: {known}. "
            f"Make them: {build_line(bundle.root, target, variant)}"
        )
    return entries[key]
