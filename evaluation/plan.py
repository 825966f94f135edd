"""Which rows will be measured: variants and backends are chosen, and mistakes found, before the long work starts."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import get_args

import msgspec

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.protocol import Task
from edgevqa.runtime.backend_choice import Note, choose_run
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.manifest import Manifest, Precision, VariantSpec
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import possible_backends
from edgevqa.runtime.targets import TARGETS

FLOAT = "fp32"
_PART = re.compile(r"-(decoder|encoder)-(?:w(?P<bits>[48])(?:b(?P<block>\d+)|c)?|high)(?=-|$)")


class MeasureOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rows are measured.

    `data` is a data set's spec; `samples` of it, drawn with `seed`, or all. `max_batch` questions are answered at once
    for accuracy and throughput; `latency_runs` single ones, after `warm_up_runs`, are timed (0: none). `threads` 0 is
    the backend's default; `check` verifies the bundle's hashes.
    """

    data: str
    samples: int | None = None
    seed: int = 0
    threads: int = 0
    max_batch: int = 8
    latency_runs: int = 100
    warm_up_runs: int = 5
    check: bool = True

    def __post_init__(self) -> None:
        lowest = {"samples": 1, "seed": 0, "latency_runs": 0, "warm_up_runs": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected a whole number of at least {least}.")
        PipelineOptions(threads=self.threads, max_batch=self.max_batch)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One row to be measured. `bundle_name` is how the user gave the bundle."""

    bundle_name: str
    bundle: Bundle
    variant: str
    backend: str

    @property
    def spec(self) -> VariantSpec:
        return self.bundle.manifest.variants[self.variant]

    @property
    def judged(self) -> bool:
        """Whether its answers can be right or wrong."""
        return flow_entry(self.bundle.manifest).answers

    @property
    def label(self) -> str:
        return f"{self.variant} on {self.backend}"

    def task(self, options: MeasureOptions, *, latency: bool = True) -> Task:
        """What the row's process is asked; without `latency` for the answers alone."""
        return Task(
            bundle=str(self.bundle.root),
            options={
                "precision": self.variant,
                "backend": self.backend,
                "threads": options.threads,
                "max_batch": options.max_batch,
                "check": options.check,
            },
            dataset=options.data,
            samples=options.samples,
            seed=options.seed,
            latency_runs=options.latency_runs if latency else 0,
            warm_up_runs=options.warm_up_runs,
        )


def plan_row(
    name: str, bundle: Bundle, precision: str | None, backend: str, *, threads: int = 0, note: Note | None = None
) -> Plan:
    """The row for a precision (or variant; None: fp32, else the first) on a backend; "auto" may have to measure some.

    Raises `InputError` that names the command which makes a missing variant, `ConfigError` for an unknown backend,
    `MissingExtraError` for one that is not installed.
    """
    possible_backends(backend)
    if precision is not None:
        require_variant(name, bundle.manifest, precision)
    chosen = choose_run(bundle, PipelineOptions(precision=precision, backend=backend, threads=threads), note)
    return Plan(bundle_name=name, bundle=bundle, variant=chosen.variant, backend=chosen.backend)


def float_plan(plan: Plan) -> Plan | None:
    """The float row that a row is compared with: fp32 of the same bundle on the same backend. None where there is none."""
    variants = plan.bundle.manifest.variants
    if not any(spec.precision == FLOAT for spec in variants.values()):
        return None
    return plan_row(plan.bundle_name, plan.bundle, FLOAT, plan.backend)


def require_variant(name: str, manifest: Manifest, precision: str) -> None:
    """Raise `InputError` where the bundle `name` has no such precision or variant, with the command that makes it."""
    variants = manifest.variants
    if precision in variants or any(spec.precision == precision for spec in variants.values()):
        return
    known = get_args(Precision)
    family = precision.partition("-")[0]
    if family not in known:
        raise InputError(
            f"'{precision}' is no precision; expected {', '.join(known)}, or a variant of {name}: {', '.join(variants)}."
        )
    if family == FLOAT:
        raise InputError(f"{name} has no variant '{precision}'; it has {', '.join(variants)}. Export it again.")
    data = "" if family in ("fp16", "bf16") else " --data DATA"
    able = [row.name for row in TARGETS.values() if family in row.numerics]
    elsewhere = "" if manifest.target in able else f" --target T (T: {', '.join(able)})"
    raise InputError(
        f"{name} has no variant '{precision}'; it has {', '.join(variants)}. "
        f"Make one: edgevqa quantize {shlex.quote(name)} --precision {family}{data}{making_options(precision)}{elsewhere}"
    )


def making_options(variant: str) -> str:
    """The options of `quantize` behind what a variant's name adds to the usual one: ` --decoder weight-int4`."""
    parts = list(_PART.finditer(variant))
    modes = (f" --{part[1]} {_mode(part['bits'])}" for part in parts)
    blocks = dict.fromkeys(f" --block-size {part['block']}" for part in parts if part["block"])
    residual = " --residual" if variant.endswith("-residual") else ""
    return "".join((*modes, *blocks, residual))


def _mode(bits: str | None) -> str:
    return f"weight-int{bits}" if bits else "high"


def calibrated_on(plan: Plan, data: str, samples: list[Sample]) -> int:
    """How many of the samples the row's variant was calibrated with; 0 for a float variant."""
    calibration = plan.bundle.manifest.calibration
    if calibration is None or plan.spec.precision == FLOAT or _source(calibration.dataset) != _source(data):
        return 0
    return len({sample.question_id for sample in samples} & set(calibration.question_ids))


def _source(spec: str) -> str:
    """What a data set's questions come from: `scenes:7:512` and `scenes:7:5000` begin with the same ones."""
    return spec.rpartition(":")[0] if spec.startswith("scenes:") else spec.rstrip("/")
