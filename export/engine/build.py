"""From a bundle's variant to engines in the bundle: one child process a graph, resumable, whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgevqa.export.engine.dla import graph_options
from edgevqa.export.engine.estimate import twice_text
from edgevqa.export.engine.finished import finished_engines
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.plan import Plan, make_plan
from edgevqa.export.engine.process import run_job
from edgevqa.export.engine.progress import TimeLeft
from edgevqa.export.engine.protocol import Built, Job
from edgevqa.export.engine.store import EngineStore
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, Here, Profile, encode_record, here
from edgevqa.runtime.manifest import EngineSet
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import Version, read_header
from edgevqa.runtime.staging import refuse_mount

Report = Callable[[str, int, int], None]


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
    stays as it was then; engines that were finished are reused by the next build, and so are those that the bundle has of an
    equal build.
    """
    started = time.monotonic()
    report = report or (lambda what, done, total: None)
    bundle = Bundle.open(bundle_path)
    refuse_mount(bundle.root)  # before the work, not at its end
    plan = make_plan(bundle, options)
    key = plan.key
    with BundleWriter.extend(bundle) as writer:
        run = _Build(bundle, plan, writer, report)
        engines = {name: run.one(name, number) for number, name in enumerate(plan.profiles)}
        record = _record(plan, run.version, engines)
        files = {name: writer.describe(f"engines/{key}/{name}.engine") for name in engines}
        entry = EngineSet(
            target=options.target,
            variant=plan.variant,
            record=writer.add_bytes(encode_record(record), f"engines/{key}/engine.json"),
            engines=files,
        )
        sets = {**bundle.manifest.engines, key: entry}
        writer.finish(msgspec.structs.replace(bundle.manifest, engines=sets))
    run.clear()
    left_out = [each for other, each in bundle.left_out().items() if other != key]
    told = {**run.warnings, "cache": run.store.warnings, "other engines": left_out}
    return BuiltEngines(
        bundle=str(bundle.root),
        key=key,
        record=record,
        reused=run.reused,
        warnings={name: lines for name, lines in told.items() if lines},
        seconds=time.monotonic() - started,
    )


class _Build:
    """One run of `build`."""

    def __init__(self, bundle: Bundle, plan: Plan, writer: BundleWriter, report: Report) -> None:
        self.reused: list[str] = []
        self.warnings: dict[str, list[str]] = {}
        self.version = plan.toolkit.version
        self._bundle, self._plan, self._writer, self._report = bundle, plan, writer, report
        spec, options = plan.spec, plan.options
        self._weights_sha256 = None if spec.weights is None else spec.weights.sha256
        self._half = spec.numerics not in ("fp32", "s8-fp32", "u8-fp32")
        device = here(plan.machine).device
        self.store = EngineStore(hashes=[self._weights_sha256], version=plan.toolkit.version, device=device)
        self._jobs: list[tuple[Job, str]] = []
        wanted = _record(plan, self.version, {})
        self._finished = {} if options.rebuild else finished_engines(bundle, plan.key, wanted)

    def one(self, name: str, number: int) -> GraphEngine:
        """Build one graph, or take it from an equal build: the bundle's, or one that was stopped."""
        profiles, total = self._plan.profiles[name], len(self._plan.profiles)
        finished = self._finished.get(name)
        if finished is not None and finished.profiles == profiles:
            self._report(f"{name}: unchanged", number, total)
            self.reused.append(name)
            self.version = read_header(self._writer.root / self._relative(name)).version
            return finished
        job, onnx_sha256 = self._job(name, profiles)
        kept = None if self._plan.options.rebuild else self.store.recall(job, onnx_sha256)
        if kept is not None:
            self._report(f"{name}: finished earlier", number, total)
            shutil.copyfile(kept[0], job.engine)
            self.reused.append(name)
            return self._describe(job, kept[1], onnx_sha256)
        left = TimeLeft()
        built = run_job(
            job,
            lambda phase, resident: self._report(f"{name}: {left.tell(phase)}{_held(resident)}", number, total),
            memory_budget_bytes=self._plan.options.memory_budget_bytes,
        )
        self.store.keep(job, onnx_sha256, built)
        return self._describe(job, built, onnx_sha256)

    def _job(self, name: str, profiles: list[Profile]) -> tuple[Job, str]:
        """What the building process is told, and the graph's hash."""
        variant = self._plan.variant
        job = Job(
            graph=name,
            onnx=str(self._bundle.graph_path(variant, name)),
            engine=str(self._writer.path(self._relative(name))),
            profiles=profiles,
            options=graph_options(self._plan.options, profiles)[0],
            half=self._half,
            numerics=self._plan.spec.numerics,
            timing_cache=str(self._timing_cache()),
        )
        self._jobs.append((job, self._bundle.graph(variant, name).file.sha256))
        return self._jobs[-1]

    def _relative(self, name: str) -> str:
        return f"engines/{self._plan.key}/{name}.engine"

    def clear(self) -> None:
        """Forget the engines that the bundle has now."""
        for job, onnx_sha256 in self._jobs:
            self.store.forget(job, onnx_sha256)

    def _timing_cache(self) -> Path:
        version = "-".join(map(str, self._plan.toolkit.version))
        own = cache_dir() / "timing" / f"{self._plan.options.row.flavour}-{version}.cache"
        return (self._plan.options.timing_cache or own).absolute()

    def _describe(self, job: Job, built: Built, onnx_sha256: str) -> GraphEngine:
        spec = self._plan.spec
        twice = twice_text(spec.graphs[job.graph], spec.numerics, job.profiles, Path(job.engine).stat().st_size)
        on_gpu = graph_options(self._plan.options, job.profiles)[1]
        self.warnings[job.graph] = [*([twice] if twice else []), *on_gpu, *built.warnings]
        self.version = built.version  # the plan's: TensorRT's Python may not tell the build
        file = self._writer.describe(self._relative(job.graph))
        return GraphEngine(
            file=f"{job.graph}.engine",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            onnx_sha256=onnx_sha256,
            weights_sha256=self._weights_sha256,
            profiles=built.profiles,
            inputs=built.inputs,
            outputs=built.outputs,
            high_layers=built.high_layers,
            high_operators=built.high_operators,
            fp32_layers=built.fp32_layers,
            seconds=round(built.seconds, 2),
            peak_memory_mb=round(built.peak_memory_mb, 1),
        )


def _held(resident_mb: float) -> str:
    return f", {resident_mb:,.0f} MB" if resident_mb >= 1 else ""


def _record(plan: Plan, version: Version, engines: dict[str, GraphEngine]) -> EngineRecord:
    spec, options, machine = plan.spec, plan.options, plan.machine
    place: Here = here(machine)
    rtx = options.row.flavour == "tensorrt-rtx"
    at_hand = [place.compute_capability] if place.compute_capability else list(options.row.compute_capabilities)
    return EngineRecord(
        format=FORMAT,
        target=options.target,
        variant=plan.variant,
        precision=spec.precision,
        numerics=spec.numerics,
        flavour=options.row.flavour or "tensorrt",
        tensorrt_version=version,
        os=place.os,
        arch=place.arch,
        device=None if rtx else place.device,
        compute_capabilities=list(options.compute_capabilities) if rtx else at_hand,
        hardware_compatibility="ampere_plus" if options.hardware_compatible else "none",
        version_compatible=options.version_compatible,
        weight_stripped=options.strip_weights,
        refittable=options.refit,
        dla_core=options.dla_core,
        driver=machine.gpus[0].driver if machine.gpus else None,
        jetpack=machine.jetson.jetpack if machine.jetson else None,
        l4t=machine.jetson.l4t if machine.jetson else None,
        calibration_sha256=spec.calibration_sha256,
        options=options.recorded(),
        graphs=engines,
    )
