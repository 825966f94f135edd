"""Compare precisions and backends of one or more bundles on the same samples, and check conditions on the result."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgevqa.evaluation.answers import scored_samples
from edgevqa.evaluation.children import Report, RowResult, run_task
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.evaluating import busy_warning, make_row, need_questions, warnings_of
from edgevqa.evaluation.gate import Gate, GateResult, Reference, RowKey
from edgevqa.evaluation.layers import Layer, layers_of
from edgevqa.evaluation.plan import MeasureOptions, Plan, float_plan, plan_row, require_variant
from edgevqa.evaluation.protocol import Measured
from edgevqa.evaluation.rows import FailedRow, Row, numbers_of, planned_numbers
from edgevqa.evaluation.selection import choose_samples
from edgevqa.runtime.backend_choice import Note
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckFailed, ConfigError, EdgeVQAError, InputError, UnavailableError, kind_of
from edgevqa.runtime.hashing import Progress
from edgevqa.runtime.machine import describe_machine
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines import stages_of
from edgevqa.runtime.sessions import BACKENDS


class CompareOptions(MeasureOptions, frozen=True, kw_only=True):
    """Also: precisions or variants (none: all that a bundle has), backends, and conditions that must not hold.

    Of the backends, `auto` is the one that runs a precision fastest here, `all` every one that is installed.
    """

    precisions: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("auto",)
    fail_if: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A measured row, its answers, those of the float variant on its backend, and what is known of its layers."""

    plan: Plan
    row: Row
    texts: list[str]
    reference: list[str] | None
    layers: list[Layer]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows over the same samples. `gates` are the conditions, checked; `failed` are rows that could not be measured."""

    options: CompareOptions
    samples: list[Sample]
    compared: list[Compared]
    failed: list[FailedRow]
    gates: list[GateResult]
    gate_errors: list[str]
    warnings: list[str]
    machine: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        return [each.row for each in self.compared]

    def as_json(self) -> dict[str, Any]:
        """What `edgevqa compare --json` writes."""
        return {
            "rows": self.rows,
            "failed": self.failed,
            "gates": self.gates,
            "gate_errors": self.gate_errors,
            "warnings": self.warnings,
            "machine": self.machine,
        }


@dataclass(kw_only=True)
class _Work:
    """What is measured as the comparison goes on."""

    options: CompareOptions
    samples: list[Sample]
    advance: Report | None
    references: dict[tuple[str, str], list[str] | None] = field(
        default_factory=dict[tuple[str, str], "list[str] | None"]
    )
    failed: list[FailedRow] = field(default_factory=list[FailedRow])
    warnings: list[str] = field(default_factory=list[str])


def compare(
    paths: Sequence[str | os.PathLike[str]],
    options: CompareOptions,
    *,
    advance: Report | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Comparison:
    """Measure every row, each in a process of its own, one after the other; then check the conditions.

    Variants, backends and conditions are checked first. A row whose process dies does not end the comparison: it is in
    `failed`. Raises `BundleError`, `InputError`, `ConfigError`, `MissingExtraError`; `worst_of` all where no row worked.
    """
    plans = _plans(paths, options, progress, note)
    samples = choose_samples(open_dataset(options.data), options.samples, options.seed)
    for plan in plans:
        need_questions(plan.bundle.manifest, options.data, samples)
    keys, fields = _keys(plans), _fields(plans, options, samples)
    gates = [(gate, gate.plan(keys, fields)) for gate in (Gate(text, keys) for text in options.fail_if)]
    layers = [layers_of(plan.bundle, plan.variant) for plan in plans]
    for plan in plans:
        plan.bundle.require_files(plan.variant)
    work = _Work(options=options, samples=samples, advance=advance, warnings=busy_warning())
    compared = [
        done
        for number, (plan, known) in enumerate(zip(plans, layers, strict=True))
        if (done := _measure(plan, known, f"{number + 1}/{len(plans)} ", work)) is not None
    ]
    if not compared:
        raise worst_of(work.failed)("No row could be measured. " + " ".join(failed.error for failed in work.failed))
    results, errors = _check(gates, {_key(each.plan): each.row for each in compared})
    return Comparison(
        options=options,
        samples=samples,
        compared=compared,
        failed=work.failed,
        gates=results,
        gate_errors=errors,
        warnings=list(dict.fromkeys(work.warnings)),
        machine=describe_machine(),
    )


def worst_of(failed: Sequence[FailedRow]) -> type[EdgeVQAError]:
    """The kind of error for rows that failed: what this machine lacks counts only where nothing worse happened."""
    codes = {row.exit_code for row in failed}
    by_weight = (EdgeVQAError.exit_code, CheckFailed.exit_code, InputError.exit_code, UnavailableError.exit_code)
    return kind_of(next((code for code in by_weight if code in codes), EdgeVQAError.exit_code))


def _plans(
    paths: Sequence[str | os.PathLike[str]], options: CompareOptions, progress: Progress | None, note: Note | None
) -> list[Plan]:
    """Every row once, bundle by bundle, backend by backend, the float one first."""
    if not paths or not options.backends:
        raise ConfigError("Nothing to compare: expected at least one bundle and one backend.")
    plans: dict[RowKey, Plan] = {}
    for path in dict.fromkeys(str(path) for path in paths):
        bundle = Bundle.open(path, check=options.check, progress=progress)
        precisions = options.precisions or list(
            dict.fromkeys(spec.precision for spec in bundle.manifest.variants.values())
        )
        for precision in precisions:
            require_variant(path, bundle.manifest, precision)  # before backends are measured
        for backend in _backends(options.backends, bundle.manifest):
            rows = [
                plan_row(path, bundle, precision, backend, threads=options.threads, note=note)
                for precision in precisions
            ]
            for plan in sorted(rows, key=lambda plan: plan.spec.precision != "fp32"):
                plans.setdefault(_key(plan), plan)
        if note is not None and not options.precisions:
            _tell_left_out(path, bundle.manifest, {plan.variant for plan in plans.values()}, note)
    return list(plans.values())


def _tell_left_out(name: str, manifest: Manifest, planned: Container[str], note: Note) -> None:
    """Name the variants with weight-only or float graphs that no precision stands for."""
    left = [variant for variant, spec in manifest.variants.items() if not spec.is_usual and variant not in planned]
    if left:
        note(f"note: not compared: {', '.join(left)} of {name}; name what is to be compared with --precisions.")


def _backends(given: Sequence[str], manifest: Manifest) -> list[str]:
    """Those given; for "all" the installed ones that have something to run in the bundle, and something to run it on."""
    if "all" not in given:
        return list(given)
    rows = [row for row in BACKENDS.values() if row.installed() and row.can_run(manifest) and row.has_device()]
    return [row.name for row in rows]


def _key(plan: Plan) -> RowKey:
    return RowKey(plan.bundle_name, plan.spec.precision, plan.variant, plan.backend, usual=plan.spec.is_usual)


def _keys(plans: Sequence[Plan]) -> list[RowKey]:
    return [_key(plan) for plan in plans]


def _fields(plans: Sequence[Plan], options: CompareOptions, samples: Sequence[Sample]) -> dict[RowKey, set[str]]:
    """The figures that each row will have."""
    latency = options.latency_runs > 0
    fields: dict[RowKey, set[str]] = {}
    for plan in plans:
        scored = scored_samples(plan.bundle.manifest, samples)
        types = sorted({sample.question_type for sample in scored if sample.answers})
        stages = stages_of(plan.bundle.manifest, plan.variant)
        fields[_key(plan)] = planned_numbers(stages, types, answers=bool(types), latency=latency)
    return fields


def _measure(plan: Plan, layers: list[Layer], place: str, work: _Work) -> Compared | None:
    """One row, with the float variant's answers; None where its process failed."""
    try:
        reference = float_plan(plan)
        if reference is not None and reference.variant != plan.variant:
            _need_reference(reference, place, work)
        outcome: tuple[RowResult, Measured] = run_task(plan.task(work.options), place + plan.label, work.advance)
    except EdgeVQAError as error:
        key = _key(plan)
        work.failed.append(
            FailedRow(
                bundle=key.bundle,
                precision=key.precision,
                variant=key.variant,
                backend=key.backend,
                error=str(error),
                exit_code=error.exit_code,
            )
        )
        return None
    texts = outcome[0].texts
    if reference is not None and reference.variant == plan.variant:
        work.references[plan.bundle_name, plan.backend] = texts
    known = work.references.get((plan.bundle_name, plan.backend))
    work.warnings += warnings_of(plan, work.options.data, work.samples)
    row = make_row(plan, work.options, work.samples, outcome, known)
    return Compared(plan=plan, row=row, texts=texts, reference=known, layers=layers)


def _need_reference(plan: Plan, place: str, work: _Work) -> None:
    """Find the float variant's answers, unless they are known; where that fails, rows have no agreement."""
    key = (plan.bundle_name, plan.backend)
    if key in work.references:
        return
    work.references[key] = None
    try:
        task = plan.task(work.options, latency=False)
        work.references[key] = run_task(task, f"{place}{plan.label} (answers)", work.advance)[0].texts
    except EdgeVQAError as error:
        work.warnings.append(f"No agreement with the float variant: {error}")


def _check(
    gates: Sequence[tuple[Gate, list[dict[Reference, RowKey]]]], rows: dict[RowKey, Row]
) -> tuple[list[GateResult], list[str]]:
    """Every condition on every row set that it is bound to, and what could not be checked."""
    figures = {key: numbers_of(row) for key, row in rows.items()}
    several = len({key.bundle for key in rows}) > 1
    results: list[GateResult] = []
    errors: list[str] = []
    for gate, bindings in gates:
        for binding in bindings:
            try:
                results.append(gate.check(binding, figures, _where(binding, several=several)))
            except EdgeVQAError as error:
                errors.append(str(error))
    return results, errors


def _where(binding: dict[Reference, RowKey], *, several: bool) -> str:
    """On which backends, and of which bundle where there is more than one."""
    backends = ", ".join(dict.fromkeys(key.backend for key in binding.values()))
    bundles = ", ".join(dict.fromkeys(key.bundle for key in binding.values()))
    return f" for {bundles} on {backends}" if several else f" on {backends}"


def changes(
    compared: Sequence[Compared], samples: Sequence[Sample]
) -> Iterator[tuple[int, list[tuple[Compared, str, str]]]]:
    """Questions that some row answers otherwise than float: the sample's place, and (row, float's, its own) answers."""
    for place in range(len(samples)):
        found = [
            (each, each.reference[place], each.texts[place])
            for each in compared
            if each.reference is not None and each.reference[place] != each.texts[place]
        ]
        if found:
            yield place, found
