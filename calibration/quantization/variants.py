"""Write the variants that were asked for into a bundle, check their answers, and publish all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import msgspec

from edgevqa.calibration.casting.plan import CastPrecision
from edgevqa.calibration.casting.variant import write_cast_variant
from edgevqa.calibration.observation.statistics import VARIANT, GraphStatistics, load_statistics
from edgevqa.calibration.observation.summary import Summary
from edgevqa.calibration.quantization.answer_check import AnswerCheck, AnswerChecker
from edgevqa.calibration.quantization.names import DECODER, ENCODERS, variant_name
from edgevqa.calibration.quantization.quantizer import Quantizer
from edgevqa.calibration.quantization.recipe import AUTO, BLOCKS_OPSET, USUAL_BLOCK, Recipe, WeightBits
from edgevqa.calibration.quantization.run import LanguageMode, QuantizedVariant, QuantizeOptions
from edgevqa.calibration.quantization.variant_report import (
    GUARDED,
    VariantReport,
    graph_totals,
    layer_reports,
    residual_reports,
)
from edgevqa.calibration.search.held_out import held_out
from edgevqa.calibration.search.search import USUAL_DROP, MixedResult, SearchOptions, search_mixed
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import stale_engines
from edgevqa.runtime.errors import CheckFailed, InputError
from edgevqa.runtime.manifest import CALIBRATION_KEY, Manifest, Numerics, VariantSpec
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.targets import Target, target

SHA256_DIGITS = 64
_NAMES = {CALIBRATION_KEY: "the calibration set"}
WANTED_AGREEMENT = 99.0  # percent; below it a variant is published with a warning
_BITS: dict[LanguageMode, WeightBits] = {"weight-int8": "int8", "weight-int4": "int4"}
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A quantised variant to write: its name, what decides it, and the layers that the search keeps high."""

    name: str
    quantizer: Quantizer
    high: frozenset[str]
    search: MixedResult | None


def write_variants(
    bundle: Bundle, options: QuantizeOptions, report: Report
) -> tuple[list[QuantizedVariant], list[str]]:
    """The new variants, published, and warnings about all of them. Raises as `quantize` does."""
    numerics = wanted_numerics(bundle, options)
    statistics = {} if bundle.manifest.calibration is None else load_statistics(bundle)
    checker, warnings = _checker(bundle, options)
    if not statistics:
        warnings.append("The bundle has no calibration: only the decoder's weights were quantised, all else is float.")
    run = _Run(bundle, options, statistics, checker, report)
    kinds = {} if options.precision in ("fp16", "bf16") else numerics
    jobs = [run.prepare(kind, targets) for kind, targets in kinds.items()]
    with BundleWriter.extend(bundle) as writer:
        made = [run.write(writer, job) for job in jobs] or [run.cast(writer)]
        variants = {**bundle.manifest.variants, **{variant.name: variant.spec for variant in made}}
        written = writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    stale = stale_engines(written, [variant.name for variant in made])
    return made, [*warnings, *_replaced(bundle, made), *bundle.left_out().values(), *stale.values()]


def wanted_numerics(bundle: Bundle, options: QuantizeOptions) -> dict[Numerics, list[Target]]:
    """How the precision is written for the targets. A bundle for any CPU also gets OpenVINO's INT8 where that is there."""
    names = list(options.targets) or [bundle.manifest.target]
    both = not options.targets and names == ["cpu"] and options.precision == "int8"
    if both and find_spec("openvino") is not None:
        names.append("openvino")
    found: dict[Numerics, list[Target]] = {}
    for name in names:
        row = target(name)
        found.setdefault(row.numerics_of(options.precision)[0], []).append(row)
    return found


class _Run:
    """One call of `write_variants`."""

    def __init__(
        self,
        bundle: Bundle,
        options: QuantizeOptions,
        statistics: dict[str, GraphStatistics],
        checker: AnswerChecker | None,
        report: Report,
    ) -> None:
        self.bundle, self.options, self.statistics = bundle, options, statistics
        self.checker, self.report = checker, report

    def prepare(self, numerics: Numerics, targets: Sequence[Target]) -> _Job:
        """Everything that is decided before a file is written: this is where the time goes."""
        recipe = self._recipe(numerics, targets)
        name = variant_name(self.options.precision, recipe, self.bundle.variant(VARIANT).graphs)
        quantizer = Quantizer(
            self.bundle,
            self.statistics,
            recipe,
            report=lambda what, done, total: self.report(f"{name}: {what}", done, total),
        )
        if self.options.precision != "mixed" or self.options.data is None:
            return _Job(name=name, quantizer=quantizer, high=frozenset(), search=None)
        options = SearchOptions(
            data=self.options.data,
            max_drop=USUAL_DROP if self.options.max_drop is None else self.options.max_drop,
            time_limit_s=self.options.time_limit_s,
            seed=self.options.seed,
            threads=self.options.threads,
        )
        found = search_mixed(self.bundle, quantizer, options, report=self.report)
        return _Job(name=name, quantizer=quantizer, high=found.high, search=found)

    def write(self, writer: BundleWriter, job: _Job) -> QuantizedVariant:
        """Write a quantised variant with its report. Raises `CheckFailed` where its answers differ too much."""
        self.report(f"{job.name}: write graphs", 0, 1)
        spec, written = job.quantizer.write(writer, job.name, self.options.precision, job.high)
        check = self._check(writer, job.name, spec)
        by_graph = dict(zip(job.quantizer.graphs, written, strict=True))
        rows = layer_reports(job.quantizer.layers(), job.high, GUARDED)
        found = VariantReport(
            variant=job.name,
            precision=self.options.precision,
            numerics=spec.numerics,
            recipe=spec.recipe,
            size_bytes=spec.size_bytes,
            float_size_bytes=self.bundle.variant(VARIANT).size_bytes,
            graphs=graph_totals(rows, by_graph),
            layers=rows,
            kept_high=[row for row in rows if row.high],
            residuals=residual_reports(by_graph),
            overflow={name: list(graph.cast.kept) for name, graph in by_graph.items() if graph.cast is not None},
            check=check,
            search=job.search,
            warnings=[*_warnings(check, asked=self.checker is not None), *_opset_warnings(job.quantizer.recipe)],
        )
        spec = msgspec.structs.replace(spec, report=writer.add_bytes(found.encode(), f"calibration/{job.name}.json"))
        return QuantizedVariant(name=job.name, spec=spec, report=found, check=check, size_bytes=found.size_bytes)

    def cast(self, writer: BundleWriter) -> QuantizedVariant:
        """Write the fp16 or bf16 variant."""
        precision: CastPrecision = "bf16" if self.options.precision == "bf16" else "fp16"
        spec = write_cast_variant(self.bundle, writer, self.statistics, precision, progress=self.report)
        check = self._check(writer, precision, spec)
        return QuantizedVariant(name=precision, spec=spec, report=None, check=check, size_bytes=spec.size_bytes)

    def _recipe(self, numerics: Numerics, targets: Sequence[Target]) -> Recipe:
        modes = {graph: self._mode(graph) for graph in self.bundle.variant(VARIANT).graphs}
        if not self.statistics:
            modes = {graph: mode if mode in _BITS else "high" for graph, mode in modes.items()}
        return Recipe(
            numerics=numerics,
            method=self.options.method or self._calibrated_method(),
            smooth=self.options.smooth,
            bias_correction=self.options.bias_correction,
            weight_only={graph: _BITS[mode] for graph, mode in modes.items() if mode in _BITS},
            high_graphs=tuple(graph for graph, mode in modes.items() if mode == "high"),
            block_size=USUAL_BLOCK if self.options.block_size is None else self.options.block_size,
            residual=self.options.residual,
            max_opset=min(row.max_opset for row in targets),
        )

    def _mode(self, graph: str) -> LanguageMode:
        if graph == DECODER:
            return self.options.decoder
        return self.options.encoder if graph in ENCODERS else "int8"

    def _calibrated_method(self) -> str:
        """The method that `edgevqa calibrate` was told."""
        if self.bundle.manifest.calibration is None:
            return AUTO
        summary, _ = self.bundle.calibration_paths()
        try:
            return msgspec.json.decode(summary.read_bytes(), type=Summary).method
        except msgspec.MsgspecError:
            return AUTO

    def _check(self, writer: BundleWriter, name: str, spec: VariantSpec) -> AnswerCheck | None:
        if self.checker is None or not _runs_here(spec):
            return None
        manifest: Manifest = msgspec.structs.replace(
            self.bundle.manifest, variants={**self.bundle.manifest.variants, name: spec}
        )
        draft = Bundle(writer.root, manifest, check=False)
        check = self.checker.check(
            draft, name, lambda done, total: self.report(f"{name}: ask held-out questions", done, total)
        )
        if check.agreement < self.options.min_agreement:
            raise CheckFailed(
                f"{name} gives the float model's answer to {check.agreement:.1f} % of {check.samples} questions of "
                f"{check.dataset}; at least {self.options.min_agreement:g} % was asked for. No variant was written. "
                "Use --precision mixed, calibrate with more and more typical data, or lower --min-agreement."
            )
        return check


def _checker(bundle: Bundle, options: QuantizeOptions) -> tuple[AnswerChecker | None, list[str]]:
    """What asks held-out questions, or why nothing is asked."""
    if options.data is None:
        return None, ["No --data was given: only local errors were measured, no answers."]
    if not flow_entry(bundle.manifest).answers:
        return None, ["The model gives arrays, no answers: only local errors were measured."]
    open_dataset(options.data)
    try:
        samples = held_out(options.data, bundle.manifest.calibration, seed=options.seed, limit=options.samples)
    except InputError as error:
        if options.precision == "mixed":
            raise
        return None, [f"Answers were not checked: {error}"]
    return AnswerChecker(options.data, samples, threads=options.threads), []


def _runs_here(spec: VariantSpec) -> bool:
    """Whether ONNX Runtime runs it: FP8 only from opset 21."""
    return spec.numerics != "fp8-fp16" or all(graph.opset >= 21 for graph in spec.graphs.values())


def _warnings(check: AnswerCheck | None, *, asked: bool) -> list[str]:
    if check is None:
        return ["Its answers were not checked: ONNX Runtime runs FP8 only from opset 21."] if asked else []
    if check.agreement >= WANTED_AGREEMENT:
        return []
    return [f"{100 - check.agreement:.1f} % of the answers are no longer the float model's. See --precision mixed."]


def _opset_warnings(recipe: Recipe) -> list[str]:
    if recipe.max_opset >= BLOCKS_OPSET or "int4" not in recipe.weight_only.values():
        return []
    return [
        f"INT4 weights need opset {BLOCKS_OPSET}. TensorRT reads them since 10.0, though the target lists opset "
        f"{recipe.max_opset}; edgevqa could not try it on such a device."
    ]


def _replaced(bundle: Bundle, made: Sequence[QuantizedVariant]) -> list[str]:
    """Says which variants took the place of others of the same name that had been made otherwise."""
    found: list[str] = []
    for variant in made:
        old = bundle.manifest.variants.get(variant.name)
        before, now = {} if old is None else old.recipe, variant.spec.recipe
        changed = [key for key in before if key in now and before[key] != now[key] and key not in ("high", "max_opset")]
        if changed:
            told = ", ".join(
                f"{_NAMES.get(key, key)} {_short(before[key])} (now {_short(now[key])})" for key in changed
            )
            found.append(f"{variant.name} was there already, made with {told}: it was replaced.")
    return found


def _short(value: object) -> object:
    """A hash by its first digits; all else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == SHA256_DIGITS else value
