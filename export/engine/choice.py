"""Which variant of a bundle is built for a target, and the command that makes one that is not there."""

from __future__ import annotations

import shlex
from typing import get_args

from edgevqa.evaluation.plan import making_options
from edgevqa.export.engine.capabilities import FP8_FROM
from edgevqa.export.engine.options import BuildOptions, capability_numbers
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import calibrate_line
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import Precision
from edgevqa.runtime.targets import Target


def preference(row: Target) -> list[Precision]:
    """The precisions of a target, the best first: those chosen by measuring, then the smallest that all of its GPUs have."""
    everywhere = bool(row.compute_capabilities) and all(
        capability_numbers(each) >= FP8_FROM for each in row.compute_capabilities
    )
    low: tuple[Precision, ...] = ("fp8", "int8") if everywhere else ("int8", "fp8")
    order: tuple[Precision, ...] = ("mixed", *low, "fp16", "bf16", "fp32")
    return [each for each in order if each in row.numerics]


def choose_buildable(bundle: Bundle, options: BuildOptions) -> str:
    """The variant to build: the one named, else the best that the bundle has in the target's numerics.

    Raises `InputError` that names the command which makes a missing one.
    """
    row, variants, named = options.row, bundle.manifest.variants, options.precision
    if named in variants:
        numerics = variants[named].numerics
        if not any(numerics in allowed for allowed in row.numerics.values()):
            raise InputError(
                f"Variant '{named}' is written as {numerics}, which {row.name} does not take. {_advice(bundle, options)}"
            )
        return named
    for precision in _wanted(bundle, options):
        allowed = row.numerics_of(precision)
        found = [name for name, spec in variants.items() if spec.precision == precision and spec.numerics in allowed]
        if found:
            return min(found, key=lambda name: not variants[name].is_usual)
    what = f"no {named} variant for {row.name}" if named else f"no variant for {row.name}"
    raise InputError(f"{bundle.root} has {what}; it has {', '.join(variants)}. {_advice(bundle, options)}")


def _wanted(bundle: Bundle, options: BuildOptions) -> list[Precision]:
    """The precisions that serve what was asked for: all where nothing was, none where it is a missing variant's name.

    Raises `InputError` for names that are neither.
    """
    named = options.precision
    if named is None:
        return preference(options.row)
    kinds: tuple[Precision, ...] = get_args(Precision)
    family, hyphen, _ = named.partition("-")
    for kind in kinds:
        if named == kind:
            return [kind]
        if hyphen and family == kind:
            options.row.numerics_of(kind)
            return []
    raise InputError(
        f"--precision {named}: there is no such precision or variant. The precisions are {', '.join(kinds)} (of which "
        f"{options.row.name} takes {', '.join(options.row.numerics)}); {bundle.root} has {', '.join(bundle.manifest.variants)}."
    )


def _advice(bundle: Bundle, options: BuildOptions) -> str:
    named = options.precision or ""
    family = named.partition("-")[0]
    precision = family if family in options.row.numerics else "int8"
    calibrated = bundle.manifest.calibration is not None or precision not in {"int8", "mixed", "fp8"}
    takes = next((allowed for kind, allowed in options.row.numerics.items() if kind == precision), ())
    same = [
        name for name, spec in bundle.manifest.variants.items() if spec.precision == family and spec.numerics in takes
    ]
    if named in bundle.manifest.variants and same and not making_options(named):
        return f"It takes {same[0]}, which {bundle.root} has: --precision {same[0]}"
    first = "" if calibrated else f"{calibrate_line(bundle.root)}, then "
    return (
        f"Make it on the workstation: {first}edgevqa quantize {shlex.quote(str(bundle.root))} --precision {precision} "
        f"--target {options.target}{making_options(named)}{' --data DATA' if precision == 'mixed' else ''}"
    )
