"""From a bundle's variant to engines in the bundle: one child process a graph, resumable, whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from edgevqa.export.engine.capabilities import graph_options
from edgevqa.export.engine.estimate import check_budget, twice_text
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.plan import BuildPlan, make_plan
from edgevqa.export.engine.process import AGAIN, TimeLeft, run_job
from edgevqa.export.engine.protocol import Built, Job
from edgevqa.export.engine.store import EngineStore, finished_engines
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import build_line
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, Here, encode_record, here
from edgevqa.runtime.manifest import EngineSet, FileSpec
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import Version, read_header
from edgevqa.runtime.staging import refuse_place

Report = Callable[[str, int, int], None]


class BuiltEngines(msgspec.Struct, frozen=True, kw_only=True):
    """A finished build: the bundle's key of the engines, their record, and how long all took."""

    bundle: str
    key: str
    record: EngineRecord
    reused: list[str]
    warnings: dict[str, list[str]]
    seconds: float


def build(
    bundle_path: str | Path, options: BuildOptions, *, report: Report | None = None, unkept: list[str] | None = None
) -> BuiltEngines:
    """Build an engine of every graph of one variant, and add them to the bundle.

    Raises `InputError` for a variant that the bundle lacks or an option that this TensorRT lacks, `UnavailableError`
    where TensorRT is not here, `CheckFailed` where it refuses a graph or the memory budget does not suffice. The bundle
    stays as it was then. Engines that were finished are reused by the next build, unless this one has `rebuild` or the
    cache takes none (`unkept` is then told why, at once); and so are those that the bundle has of an equal build.
    """
    started = time.monotonic()
    report = report or (lambda what, done, total: None)
    bundle = Bundle.open(bundle_path)
    refuse_place(bundle.root)  # before the work, not at its end
    plan = make_plan(bundle, options)
    key = plan.key
    with BundleWriter.extend(bundle) as writer:
        run = _Build(bundle, plan, writer, report)
        if unkept is not None:
            run.store.warnings = unkept
        record = run.all()
        entry = EngineSet(
            target=options.target,
            variant=plan.variant,
            record=writer.add_bytes(encode_record(record), run.path("engine.json")),
            engines={name: run.file(engine) for name, engine in record.graphs.items()},
        )
        sets = {**bundle.manifest.engines, key: entry}
        writer.finish(msgspec.structs.replace(bundle.manifest, engines=sets))
    run.store.forget()
    left_out = [each for other, each in bundle.left_out().items() if other != key]
    told = {
        **run.warnings,
        "cache": run.store.warnings,
        "other engines": left_out,
        "these engines": _damaged_text(bundle, plan),
    }
    return BuiltEngines(
        bundle=str(bundle.root),
        key=key,
        record=record,
        reused=[name for name in record.graphs if name in run.reused],
        warnings={name: lines for name, lines in told.items() if lines},
        seconds=time.monotonic() - started,
    )


class _Build:
    """One run of `build`."""

    def __init__(self, bundle: Bundle, plan: BuildPlan, writer: BundleWriter, report: Report) -> None:
        self.reused: set[str] = set()
        self.warnings: dict[str, list[str]] = {}
        self._version = plan.toolkit.version
        self._bundle, self._plan, self._writer, self._report = bundle, plan, writer, report
        weights = plan.spec.weights
        self._weights_sha256 = None if weights is None else weights.sha256
        device = here(plan.machine).device
        self.store = EngineStore(hashes=[self._weights_sha256], version=plan.toolkit.version, device=device)

    def all(self) -> EngineRecord:
        """Take what equal builds have finished, and build the rest if the memory budget allows it."""
        plan = self._plan
        wanted = _record(plan, self._version, {})
        before = None if plan.options.rebuild else finished_engines(self._bundle, plan.key, wanted)
        engines = {} if before is None else self._unchanged(before)
        if before is not None and set(engines) == set(plan.profiles):  # then nothing here had a part in them
            kept = {"driver": before.driver, "jetpack": before.jetpack, "l4t": before.l4t}
            return msgspec.structs.replace(_record(plan, self._version, engines), **kept)
        if not plan.options.rebuild:
            engines |= self._recalled(set(plan.profiles) - set(engines))
        rest = {name: graph for name, graph in plan.spec.graphs.items() if name not in engines}
        if rest:
            check_budget(rest, plan.spec.numerics, plan.profiles, plan.options)
        for name in rest:
            engines[name] = self._built(name)
        return _record(plan, self._version, {name: engines[name] for name in plan.profiles})

    def path(self, file: str) -> str:
        """A file's place in the bundle."""
        return f"engines/{self._plan.key}/{file}"

    def file(self, engine: GraphEngine) -> FileSpec:
        """The manifest's entry of an engine."""
        return FileSpec(path=self.path(engine.file), sha256=engine.sha256, size_bytes=engine.size_bytes)

    def _unchanged(self, before: EngineRecord) -> dict[str, GraphEngine]:
        """The bundle's own engines with the same profiles."""
        profiles = self._plan.profiles
        found = {name: engine for name, engine in before.graphs.items() if engine.profiles == profiles.get(name)}
        for name, engine in found.items():
            self._tell(name, "unchanged")
            self.reused.add(name)
            self._version = read_header(self._writer.root / self.path(engine.file)).version
        return found

    def _recalled(self, names: Collection[str]) -> dict[str, GraphEngine]:
        """The engines that a build had finished when it was stopped."""
        found: dict[str, GraphEngine] = {}
        for name in (each for each in self._plan.profiles if each in names):
            job, onnx_sha256 = self._job(name)
            kept = self.store.recall(job, onnx_sha256)
            if kept is not None:
                self._tell(name, "finished earlier")
                shutil.copyfile(kept[0], job.engine)
                self.reused.add(name)
                found[name] = self._describe(job, kept[1], onnx_sha256)
        return found

    def _built(self, name: str) -> GraphEngine:
        job, onnx_sha256 = self._job(name)
        left, options = TimeLeft(), self._plan.options
        built = run_job(
            job,
            lambda phase, resident: self._tell(name, f"{left.tell(phase)}{_held(resident)}"),
            memory_budget_bytes=options.memory_budget_bytes,
            again=again_text(rebuild=options.rebuild, unkept=bool(self.store.warnings)),
        )
        if not options.rebuild:
            self.store.keep(job, onnx_sha256, built)
        return self._describe(job, built, onnx_sha256)

    def _tell(self, name: str, what: str) -> None:
        names = list(self._plan.profiles)
        self._report(f"{name}: {what}", names.index(name), len(names))

    def _job(self, name: str) -> tuple[Job, str]:
        """What the building process is told, and the graph's hash."""
        plan = self._plan
        job = Job(
            graph=name,
            onnx=str(self._bundle.graph_path(plan.variant, name)),
            engine=str(self._writer.path(self.path(f"{name}.engine"))),
            profiles=plan.profiles[name],
            options=graph_options(plan.options, plan.profiles[name])[0],
            numerics=plan.spec.numerics,
            timing_cache=str(self._timing_cache()),
        )
        return job, self._bundle.graph(plan.variant, name).file.sha256

    def _timing_cache(self) -> Path:
        options, version = self._plan.options, "-".join(map(str, self._plan.toolkit.version))
        own = cache_dir() / "timing" / f"{options.row.flavour}-{version}.cache"
        return (own if options.timing_cache is None else Path(options.timing_cache)).absolute()

    def _describe(self, job: Job, built: Built, onnx_sha256: str) -> GraphEngine:
        spec = self._plan.spec
        file = self._writer.describe(self.path(f"{job.graph}.engine"))
        twice = twice_text(spec.graphs[job.graph], spec.numerics, job.profiles, file.size_bytes)
        on_gpu = graph_options(self._plan.options, job.profiles)[1]
        self.warnings[job.graph] = [*([twice] if twice else []), *on_gpu, *built.warnings]
        self._version = built.version  # the plan's: TensorRT's Python may not tell the build
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


def again_text(*, rebuild: bool, unkept: bool) -> str:
    """What running the command again does after a build that was ended."""
    if rebuild:
        return f"{AGAIN} With --rebuild no finished engine is kept; run again without --rebuild to keep them."
    return AGAIN if unkept else f"{AGAIN[:-1]}: engines that are finished are kept."


def _damaged_text(bundle: Bundle, plan: BuildPlan) -> list[str]:
    """What to tell where the bundle's own engines of this key were damaged."""
    own = bundle.damaged_engines.get(plan.key)
    if own is None:
        return []
    cure = f" Build the engines again: {build_line(bundle.root, plan.options.target, plan.variant)}"
    return [f"{own.removesuffix(cure)} All of them were built again or taken from a build that was stopped."]


def _held(resident_mb: float) -> str:
    return f", {resident_mb:,.0f} MB" if resident_mb >= 1 else ""


def _record(plan: BuildPlan, version: Version, engines: dict[str, GraphEngine]) -> EngineRecord:
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
