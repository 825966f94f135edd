"""Evaluate one variant of a bundle on a data set: how right, how fast, how big."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgevqa.evaluation.answers import scored_samples
from edgevqa.evaluation.children import Report, RowResult, run_task
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.metrics import Agreement, Scores, agreement, right_or_wrong, score
from edgevqa.evaluation.normalization import normalize_answer
from edgevqa.evaluation.plan import MeasureOptions, Plan, calibrated_on, float_plan, plan_row
from edgevqa.evaluation.protocol import Measured
from edgevqa.evaluation.rows import Row, build_row
from edgevqa.evaluation.selection import choose_samples
from edgevqa.evaluation.significance import McNemar, mcnemar
from edgevqa.runtime.backend_choice import Note
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.codecs import distinct_labels
from edgevqa.runtime.errors import EdgeVQAError, InputError
from edgevqa.runtime.hashing import Progress
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.manifest import Manifest

HALF_PRECISION = ("fp16", "bf16", "s8-fp16", "fp8-fp16")
BUSY_SHARE = 0.5
NAMED_SHARE = 0.8
CPU_BACKENDS = ("onnxruntime", "openvino")


class EvaluateOptions(MeasureOptions, frozen=True, kw_only=True):
    """Also: a precision or variant of the bundle (None: fp32, else the first there is), and the backend."""

    precision: str | None = None
    backend: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One row, what should be known about it, and the answers in the samples' order."""

    row: Row
    warnings: list[str]
    samples: list[Sample]
    result: RowResult
    machine: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What `edgevqa evaluate --json` writes."""
        return {"rows": [self.row], "warnings": self.warnings, "machine": self.machine}

    def predictions(self) -> list[dict[str, Any]]:
        """One record a question: what was asked, expected and answered."""
        told = zip(self.samples, self.result.texts, self.result.confidences, strict=True)
        return [
            {
                "question_id": sample.question_id,
                "image_id": sample.image_id,
                "question": sample.question,
                "question_type": sample.question_type,
                "answers": sample.answers,
                "prediction": text,
                "confidence": confidence,
            }
            for sample, text, confidence in told
        ]


def evaluate(
    path: str | os.PathLike[str],
    options: EvaluateOptions,
    *,
    advance: Report | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Evaluation:
    """Measure one variant in a process of its own; for all but fp32, the fp32 variant's answers are found first.

    `progress` is called while big files are hashed, `note` when backends have to be measured, `advance` afterwards.
    Raises `BundleError`, `InputError`, `ConfigError`, `MissingExtraError`; `EdgeVQAError` where a process died.
    """
    bundle = Bundle.open(path, check=options.check, progress=progress)
    plan = plan_row(str(path), bundle, options.precision, options.backend, threads=options.threads, note=note)
    samples = choose_samples(open_dataset(options.data), options.samples, options.seed)
    need_questions(bundle.manifest, options.data, samples)
    reference = float_plan(plan)
    bundle.require_files(plan.variant)
    texts: list[str] | None = None
    warnings = busy_warning() + warnings_of(plan, options.data, samples)
    if reference is not None and reference.variant != plan.variant:
        try:
            texts = run_task(reference.task(options, latency=False), f"{reference.label} (answers)", advance)[0].texts
        except EdgeVQAError as error:
            warnings.append(f"No agreement with the float variant: {error}")
    result, measured = run_task(plan.task(options), plan.label, advance)
    if reference is not None and reference.variant == plan.variant:
        texts = result.texts
    row = make_row(plan, options, samples, (result, measured), texts)
    return Evaluation(row=row, warnings=warnings, samples=samples, result=result, machine=describe_machine())


def need_questions(manifest: Manifest, data: str, samples: Sequence[Sample]) -> None:
    """Raise `InputError` where a model that reads questions would be asked about pictures alone."""
    if manifest.text is None or not manifest.text.required:
        return
    without = sum(not sample.question for sample in samples)
    if without:
        raise InputError(
            f"{data} has {without:,} pictures without a question, which this model ({manifest.family}) needs. Put typical "
            "ones into a questions.txt beside the pictures, one a line."
        )


def make_row(
    plan: Plan,
    options: MeasureOptions,
    samples: Sequence[Sample],
    outcome: tuple[RowResult, Measured],
    reference: Sequence[str] | None,
) -> Row:
    """Score what a row's process told; `reference` are the float variant's answers, None where there are none."""
    result, measured = outcome
    samples = scored_samples(plan.bundle.manifest, samples)
    reference = reference if plan.judged else None
    scores = _scores(samples, result.texts)
    floats = None if reference is None else _scores(samples, reference)
    drop = None if scores is None or floats is None else floats.accuracy - scores.accuracy
    return build_row(
        identity={
            "bundle": plan.bundle_name,
            "precision": plan.spec.precision,
            "variant": plan.variant,
            "numerics": plan.spec.numerics,
            "backend": plan.backend,
            "dataset": options.data,
        },
        scores=scores,
        agreed=_agreement(result.texts, reference),
        drop=drop,
        mcnemar=None if reference is None or scores is None else _mcnemar(samples, reference, result.texts),
        measured={
            "n": len(samples),
            "latency_ms": measured.latency_ms,
            "per_graph_ms": measured.per_graph_ms,
            "latency_runs": measured.latency_runs,
            "warm_up_runs": options.warm_up_runs,
            "throughput_per_s": len(samples) / measured.answering_s,
            "load_ms": measured.load_ms,
            "peak_memory_mb": measured.peak_memory_mb,
            "size_mb": plan.spec.size_bytes / 1e6,
            "energy_j": None if measured.energy.joules is None else measured.energy.joules / len(samples),
            "energy_sensors": measured.energy.sensors,
            "energy_missing": measured.energy.missing if measured.energy.joules is None else None,
            "threads": options.threads,
            "max_batch": options.max_batch,
            "note": _note(plan, reference),
        },
    )


def warnings_of(plan: Plan, data: str, samples: list[Sample]) -> list[str]:
    """What makes a row's accuracy say less than it seems to."""
    found = label_warning(plan.bundle.manifest.labels, samples) if plan.judged else []
    seen = calibrated_on(plan, data, samples) if plan.judged else 0
    if seen:
        return [
            *found,
            f"{seen:,} of the {len(samples):,} questions were used to calibrate {plan.variant} of {plan.bundle_name}: "
            "its accuracy on them says little about others. Use other data.",
        ]
    return found


def label_warning(labels: Sequence[str], samples: Sequence[Sample]) -> list[str]:
    """Says so where a model that chooses from labels can name the answers of few questions."""
    asked = [sample for sample in samples if sample.answers]
    if not labels or not asked:
        return []
    known = {normalize_answer(label) for label in (*labels, *distinct_labels(labels))}
    share = sum(any(normalize_answer(answer) in known for answer in sample.answers) for sample in asked) / len(asked)
    if share >= NAMED_SHARE:
        return []
    some = ", ".join([repr(answer) for sample in asked for answer in sample.answers[:1]][:3])
    return [
        f"Only {share:.0%} of the questions have an answer (such as {some}) among the model's {len(labels):,} labels (such as "
        f"{', '.join(map(repr, labels[:3]))}); it cannot be right on the others. Give data whose answers are labels."
    ]


def busy_warning(load: float | None = None) -> list[str]:
    """Says so where other processes want the processor before anything is measured; `load` is the system's mean."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < BUSY_SHARE * cores:
        return []
    return [
        f"Other programs kept this machine busy at the start (load {load:.1f} on {cores} cores): times are longer and "
        "spread more than on a quiet one."
    ]


def _with_answers(samples: Sequence[Sample], texts: Sequence[str]) -> tuple[list[Sample], list[str]]:
    kept = [(sample, text) for sample, text in zip(samples, texts, strict=True) if sample.answers]
    return [sample for sample, _ in kept], [text for _, text in kept]


def _scores(samples: Sequence[Sample], texts: Sequence[str]) -> Scores | None:
    """Over the questions that have answers; None where none has."""
    known, given = _with_answers(samples, texts)
    return score(known, given) if known else None


def _agreement(texts: Sequence[str], reference: Sequence[str] | None) -> Agreement | None:
    return None if reference is None else agreement(reference, texts)


def _mcnemar(samples: Sequence[Sample], reference: Sequence[str], texts: Sequence[str]) -> McNemar:
    float_right = right_or_wrong(*_with_answers(samples, reference))
    return mcnemar(float_right, right_or_wrong(*_with_answers(samples, texts)))


def _note(plan: Plan, reference: Sequence[str] | None) -> str | None:
    notes: list[str] = [] if plan.judged else ["The model gives arrays, no answers: nothing of it is right or wrong."]
    if plan.spec.numerics in HALF_PRECISION and plan.backend in CPU_BACKENDS:
        kind = "BF16" if plan.spec.numerics == "bf16" else "FP16"
        notes.append(f"{kind} rounding emulated by the backend on a CPU: the answers count, the times do not.")
    if reference is None and plan.judged:
        notes.append("No agreement: there are no answers of a float variant.")
    return " ".join(notes) or None
