"""From a source to a published bundle: load, trace, write, compare, publish."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import msgspec

import edgevqa
from edgevqa.export import families
from edgevqa.export.case_files import kept_in_files
from edgevqa.export.options import ExportOptions
from edgevqa.export.sources import Source, resolve_source
from edgevqa.export.spec import AnswerCase, Case, Family, Loaded, Tokenized
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import CheckFailed, CheckpointError, require
from edgevqa.runtime.manifest import SCHEMA_VERSION, GraphSpec, Manifest, ParitySpec, TextSpec, VariantSpec

VARIANT = "fp32"
WEIGHTS = f"graphs/{VARIANT}/weights.data"
TOKENIZER = "tokenizer.json"
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "optimum", "tokenizers", "numpy")

LEFT_OUT = "answers to all packaged questions but the first: the eager model is too big to answer them in good time"

Report = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A published bundle, what was compared (None without verification), and how long it took."""

    bundle: Bundle
    parity: ParitySpec | None
    seconds: float


def export(
    source: str, output: str | Path, options: ExportOptions | None = None, *, report: Report | None = None
) -> Exported:
    """Export `source` to the bundle `output`; it is published whole or not at all.

    Raises `InputError` and its kin for what was given, `NetworkError` for hub ids, `CheckFailed` when a graph differs
    from eager PyTorch by more than the family's tolerance or an answer is another.
    """
    options, report = options or ExportOptions(), report or (lambda what, done, total: None)
    started = time.perf_counter()
    if options.verify:
        require("onnxruntime", extra="cpu", purpose="Comparing the graphs with PyTorch (leave it out with --no-verify)")
    found = resolve_source(source, config=options.config, root=options.root, revision=options.revision)
    before = _state_of(found)
    with BundleWriter(output, overwrite=options.overwrite) as writer:
        report("load the model", 0, 1)
        job = _Job(families.family(found.family), found.family, options, writer, report)
        loaded = job.family.load(found)
        manifest = job.write(loaded)
        if options.verify:
            from edgevqa.export.streaming import is_big

            with writer.scratch() as scratch:
                cases = kept_in_files(job.family.cases(loaded), scratch)
                answers = job.family.answer_cases(loaded)
                left_out = [LEFT_OUT] if is_big(loaded.model) else []
                del loaded  # the eager model and the sessions never lie in memory together
                gc.collect()
                manifest = job.verify(manifest, cases, answers, left_out)
        if _state_of(found) != before:  # weights are mapped, not copied: what was traced may be a mixture
            raise CheckpointError(f"{found.path} was changed while it was exported. Run the command again.")
        bundle = writer.finish(manifest)
    return Exported(bundle=bundle, parity=manifest.parity.get(VARIANT), seconds=time.perf_counter() - started)


def _state_of(source: Source) -> list[tuple[str, int, int]]:
    """Name, size and time of every file that the model is read from."""
    files = sorted(source.path.glob("*.safetensors")) if source.path.is_dir() else [source.path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


class _Job:
    """One run of `export`."""

    def __init__(self, family: Family, name: str, options: ExportOptions, writer: BundleWriter, report: Report) -> None:
        self.family, self.name, self.options, self.writer, self.report = family, name, options, writer, report

    def write(self, loaded: Loaded) -> Manifest:
        graphs = self.write_graphs(loaded)
        text = None if loaded.text is None else self.write_tokenizer(loaded.text, TOKENIZER)
        texts = {name: self.write_tokenizer(each, f"{name}.{TOKENIZER}") for name, each in loaded.texts.items()}
        weights = self.writer.describe(WEIGHTS)
        variant = VariantSpec(precision="fp32", numerics="fp32", weights=weights, graphs=graphs)
        return Manifest(
            schema_version=SCHEMA_VERSION,
            edgevqa_version=edgevqa.__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            family=self.name,
            task=loaded.task,
            pipeline=loaded.pipeline,
            target=self.options.target,
            image=loaded.image,
            text=text,
            texts=texts,
            labels=list(loaded.labels),
            matching=loaded.matching,
            generation=loaded.generation,
            variants={VARIANT: variant},
            source=loaded.source,
            model=dict(loaded.model_info),
            tools=tool_versions(),
        )

    def write_tokenizer(self, text: Tokenized, name: str) -> TextSpec:
        return msgspec.structs.replace(text.spec, tokenizer=self.writer.add_bytes(text.data, name))

    def write_graphs(self, loaded: Loaded) -> dict[str, GraphSpec]:
        from edgevqa.calibration.describe import graph_spec
        from edgevqa.calibration.weights import SharedWeights
        from edgevqa.export.trace import trace
        from edgevqa.export.tracer_table import one_table

        graphs: dict[str, GraphSpec] = {}
        plans = self.family.plans(loaded)
        with SharedWeights(self.writer.path(WEIGHTS)) as weights, one_table():
            for done, (name, make) in enumerate(plans.items()):
                self.report(f"trace {name}", done, len(plans))
                model = trace(make(), opset=self.options.chosen_opset)
                relative = f"graphs/{VARIANT}/{name}.onnx"
                weights.write_graph(model, self.writer.path(relative))
                graphs[name] = graph_spec(model, self.writer.describe(relative))
        return graphs

    def verify(self, manifest: Manifest, cases: list[Case], answers: list[AnswerCase], left_out: list[str]) -> Manifest:
        from edgevqa.export import verify

        bundle = Bundle(self.writer.root, manifest, check=False)
        graphs = list(manifest.variants[VARIANT].graphs)

        def progress(graph: str) -> None:
            self.report(f"compare {graph}", graphs.index(graph), len(graphs))

        rows = verify.compare_graphs(bundle, VARIANT, cases, tolerance=self.family.tolerance, progress=progress)
        cases.clear()
        self.report("compare answers", len(graphs), len(graphs))
        different = verify.compare_answers(bundle, VARIANT, answers)
        found = verify.parity(rows, len(answers), len(different), left_out=left_out)
        if failed := [row for row in rows if not row.passed]:
            worst = max(failed, key=lambda row: row.max_abs_diff)
            raise CheckFailed(
                f"{len(failed)} of {len(rows)} comparisons with PyTorch are out of tolerance; the worst is {worst.output} "
                f"of {worst.graph} on {worst.samples} samples: {worst.max_abs_diff:.2e}, at most {worst.tolerance:.0e}. "
                "The bundle was not published."
            )
        if different:
            case, answer = different[0]
            raise CheckFailed(
                f"{len(different)} of {len(answers)} answers are not PyTorch's; '{case.question}': '{answer.text}', expected "
                f"'{case.expected}'. The bundle was not published."
            )
        return msgspec.structs.replace(manifest, parity={VARIANT: found})


def tool_versions() -> dict[str, str]:
    """Versions of everything that had a hand in the bundle."""
    versions = {"python": platform.python_version()}
    for tool in TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions
