"""From a bundle's variant to engines in the bundle: one child process a graph, resumable, whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec

from edgevqa.evaluation.plan import making_options
from edgevqa.export.engine.estimate import check_budget, twice_text
from edgevqa.export.engine.flavours import Toolkit, load_toolkit, refuse_impossible
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.process import TimeLeft, run_job
from edgevqa.export.engine.profiles import axis_ranges, check_axes, graph_profiles
from edgevqa.export.engine.protocol import Built, Job
from edgevqa.export.engine.store import EngineStore
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, Here, Profile, encode_record, here
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.machine import Machine, read_machine
from edgevqa.runtime.manifest import EngineSet, Manifest, Precision, VariantSpec
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import Version
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.staging import refuse_mount

Report = Callable[[str, int, int], None]
_PREFERENCE = ("mixed", "int8", "fp16", "fp32")


class BuiltEngines(msgspec.Struct, frozen=True, kw_only=True):
    """A finished build: the bundle's key of the engines, their record, and how long all took."""

    bundle: str
    key: str
    record: EngineRecord
    reused: list[str]
    warnings: dict[str, list[str]]
    seconds: float


def build(bundle_path: str | Path, options: BuildOptions, *, report: Report | None = None) -> BuiltEngines:
    """Build an engine of every graph of one variant, and add them to the bundle.

    Raises `InputError` for a variant that the bundle lacks or an option that this TensorRT lacks, `UnavailableError`
    where TensorRT is not here, `CheckFailed` where it refuses a graph or the memory budget does not suffice. The bundle
    stays as it was then; engines that were finished are reused by the next build.
    """
    started = time.monotonic()
    report = report or (lambda what, done, total: None)
    bundle = Bundle.open(bundle_path)
    refuse_mount(bundle.root)  # before the work, not at its end
    variant = choose_buildable(bundle, options)
    spec = bundle.variant(variant)
    toolkit = load_toolkit(options.row)
    refuse_impossible(options, toolkit)
    check_axes(options.axes, spec.graphs)
    main = Questions.of(bundle).main
    ranges = axis_ranges(bundle.manifest, spec.graphs, options, template=None if main is None else main.template_tokens)
    profiles = {name: graph_profiles(name, graph, ranges) for name, graph in spec.graphs.items()}
    check_budget(spec.graphs, spec.numerics, profiles, options.memory_budget_bytes)
    bundle.require_files(variant)
    machine = read_machine()
    key = f"{options.target}/{variant}"
    with BundleWriter.extend(bundle) as writer:
        run = _Build(bundle, variant, options, toolkit, writer, report)
        engines = {name: run.one(name, number, len(profiles), profiles[name]) for number, name in enumerate(profiles)}
        record = _record(bundle.manifest, spec, variant, options, run.version, machine, engines)
        files = {name: writer.describe(f"engines/{key}/{name}.engine") for name in engines}
        entry = EngineSet(
            target=options.target,
            variant=variant,
            record=writer.add_bytes(encode_record(record), f"engines/{key}/engine.json"),
            engines=files,
        )
        sets = {**bundle.manifest.engines, key: entry}
        writer.finish(msgspec.structs.replace(bundle.manifest, engines=sets))
    run.clear()
    return BuiltEngines(
        bundle=str(bundle.root),
        key=key,
        record=record,
        reused=run.reused,
        warnings={name: lines for name, lines in run.warnings.items() if lines},
        seconds=time.monotonic() - started,
    )


def choose_buildable(bundle: Bundle, options: BuildOptions) -> str:
    """The variant to build: the one named, else the best that the bundle has in the target's numerics.

    Raises `InputError` that names the command which makes a missing one.
    """
    row, variants = options.row, bundle.manifest.variants
    if options.precision in variants:
        numerics = variants[options.precision].numerics
        if not any(numerics in allowed for allowed in row.numerics.values()):
            raise InputError(
                f"Variant '{options.precision}' is written as {numerics}, which {row.name} does not take. "
                f"{_advice(bundle, options)}"
            )
        return options.precision
    wanted: tuple[str, ...] = _PREFERENCE if options.precision is None else (options.precision,)
    family, hyphen, _ = (options.precision or "").partition("-")
    if hyphen and family in get_args(Precision):
        row.numerics_of(family)  # type: ignore[arg-type]
        wanted = ()  # it is a variant's name, which no other one serves
    for precision in wanted:
        allowed = row.numerics_of(precision)  # type: ignore[arg-type]
        found = [name for name, spec in variants.items() if spec.precision == precision and spec.numerics in allowed]
        if found:
            return min(found, key=lambda name: not variants[name].is_usual)
    what = f"no {options.precision} variant for {row.name}" if options.precision else f"no variant for {row.name}"
    raise InputError(f"{bundle.root} has {what}; it has {', '.join(variants)}. {_advice(bundle, options)}")


def _advice(bundle: Bundle, options: BuildOptions) -> str:
    named = options.precision or ""
    family = named.partition("-")[0]
    precision = family if family in options.row.numerics else "int8"
    calibrated = bundle.manifest.calibration is not None or precision not in {"int8", "mixed"}
    first = "" if calibrated else f"edgevqa calibrate {bundle.root} --data DATA, then "
    return (
        f"Make it on the workstation: {first}edgevqa quantize {bundle.root} --precision {precision} "
        f"--target {options.target}{making_options(named)}{' --data DATA' if precision == 'mixed' else ''}"
    )


class _Build:
    """One run of `build`."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        options: BuildOptions,
        toolkit: Toolkit,
        writer: BundleWriter,
        report: Report,
    ) -> None:
        self.reused: list[str] = []
        self.warnings: dict[str, list[str]] = {}
        self.version = toolkit.version
        self._bundle, self._variant, self._options = bundle, variant, options
        self._writer, self._report, self._toolkit = writer, report, toolkit
        spec = bundle.variant(variant)
        self._weights_sha256 = None if spec.weights is None else spec.weights.sha256
        self._half = spec.numerics not in ("fp32", "s8-fp32", "u8-fp32")
        place = here(read_machine())
        self._store = EngineStore(hashes=[self._weights_sha256], version=toolkit.version, device=place.device)
        self._jobs: list[tuple[Job, str]] = []

    def one(self, name: str, number: int, total: int, profiles: list[Profile]) -> GraphEngine:
        """Build one graph, or take it from an earlier build that was stopped."""
        relative = f"engines/{self._options.target}/{self._variant}/{name}.engine"
        place = self._writer.path(relative)
        onnx_sha256 = self._bundle.graph(self._variant, name).file.sha256
        job = Job(
            graph=name,
            onnx=str(self._bundle.graph_path(self._variant, name)),
            engine=str(place),
            profiles=profiles,
            options=self._options,
            half=self._half,
            timing_cache=str(self._timing_cache()),
        )
        self._jobs.append((job, onnx_sha256))
        kept = None if self._options.rebuild else self._store.recall(job, onnx_sha256)
        if kept is not None:
            self._report(f"{name}: finished earlier", number, total)
            shutil.copyfile(kept[0], place)
            self.reused.append(name)
            return self._describe(job, kept[1], onnx_sha256)
        left = TimeLeft()
        built = run_job(
            job,
            lambda phase, resident: self._report(f"{name}: {left.tell(phase)}, {resident:,.0f} MB", number, total),
            memory_budget_bytes=self._options.memory_budget_bytes,
        )
        self._store.keep(job, onnx_sha256, built)
        return self._describe(job, built, onnx_sha256)

    def clear(self) -> None:
        """Forget the engines that the bundle has now."""
        for job, onnx_sha256 in self._jobs:
            self._store.forget(job, onnx_sha256)

    def _timing_cache(self) -> Path:
        version = "-".join(map(str, self._toolkit.version))
        own = cache_dir() / "timing" / f"{self._options.row.flavour}-{version}.cache"
        return (self._options.timing_cache or own).absolute()

    def _describe(self, job: Job, built: Built, onnx_sha256: str) -> GraphEngine:
        spec = self._bundle.variant(self._variant)
        twice = twice_text(spec.graphs[job.graph], spec.numerics, job.profiles, Path(job.engine).stat().st_size)
        self.warnings[job.graph] = [*([twice] if twice else []), *built.warnings]
        self.version = built.version  # the plan's: TensorRT's Python may not tell the build
        file = self._writer.describe(f"engines/{self._options.target}/{self._variant}/{job.graph}.engine")
        return GraphEngine(
            file=f"{job.graph}.engine",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            onnx_sha256=onnx_sha256,
            weights_sha256=self._weights_sha256,
            profiles=job.profiles,
            inputs=built.inputs,
            outputs=built.outputs,
            high_layers=built.high_layers,
            high_operators=built.high_operators,
            seconds=round(built.seconds, 2),
            peak_memory_mb=round(built.peak_memory_mb, 1),
        )


def _record(
    manifest: Manifest,
    spec: VariantSpec,
    variant: str,
    options: BuildOptions,
    version: Version,
    machine: Machine,
    engines: dict[str, GraphEngine],
) -> EngineRecord:
    place: Here = here(machine)
    rtx = options.row.flavour == "tensorrt-rtx"
    at_hand = [place.compute_capability] if place.compute_capability else list(options.row.compute_capabilities)
    return EngineRecord(
        format=FORMAT,
        target=options.target,
        variant=variant,
        precision=spec.precision,
        numerics=spec.numerics,
        flavour=options.row.flavour or "tensorrt",
        tensorrt_version=version,
        os=place.os,
        arch=place.arch,
        device=None if rtx else place.device,
        compute_capabilities=list(options.compute_capabilities or options.row.compute_capabilities) if rtx else at_hand,
        hardware_compatibility="ampere_plus" if options.hardware_compatible else "none",
        version_compatible=options.version_compatible,
        weight_stripped=options.strip_weights,
        refittable=options.refit,
        dla_core=options.dla_core,
        driver=machine.gpus[0].driver if machine.gpus else None,
        jetpack=machine.jetson.jetpack if machine.jetson else None,
        l4t=machine.jetson.l4t if machine.jetson else None,
        calibration_sha256=manifest.calibration.sha256 if manifest.calibration and spec.recipe else None,
        options={
            "batch": ",".join(map(str, options.batch)),
            "max_question": options.max_question or None,
            "workspace_bytes": options.workspace_bytes,
            "optimization_level": options.optimization_level,
        },
        graphs=engines,
    )
