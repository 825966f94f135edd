"""How much each layer suffers from being quantised: its own output's error first, then what the answers say."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from edgevqa.calibration.observation.statistics import load_statistics
from edgevqa.calibration.quantization.quantizer import LayerCost, Quantizer
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.search.clock import Clock
from edgevqa.calibration.search.measuring import (
    MeasureOptions,
    Report,
    effect_text,
    make_plan,
    measure_layers,
    open_trials,
    quantisable,
    shares_of_time,
    weak_points,
)
from edgevqa.calibration.search.raising import predict_harm
from edgevqa.calibration.search.records import Plan
from edgevqa.calibration.search.trials import Trials
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.sensitivity import Effect, LayerSensitivity, SensitivityReport, save_sensitivity
from edgevqa.runtime.targets import target

__all__ = ["SensitivityOptions", "SensitivityReport", "sensitivity"]

NO_LIMIT = 1e9  # of the local error: every layer is ranked, also one that `quantize` would refuse to quantise


class SensitivityOptions(MeasureOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the ranking is made; `target` (None: the bundle's own) decides the numerics, `smooth` as in `Recipe`."""

    time_limit_s: float | None = 600.0
    target: str | None = None
    smooth: bool = True


def sensitivity(
    path: str | os.PathLike[str], options: SensitivityOptions, *, report: Report | None = None
) -> SensitivityReport:
    """Rank the layers of a calibrated bundle by the harm of quantising them; the bundle is not changed.

    The local error of all layers comes from the calibration's captured rows; the worst `options.worst` are quantised
    alone, then left out alone, and asked the same held-out questions as the float model, as far as the time goes. The
    ranking is kept in the user's cache (`sensitivity_path`), each measurement too: a second run goes on where the first
    was interrupted. Raises `InputError` for a bundle without calibration.
    """
    clock = Clock(options.time_limit_s)
    bundle = Bundle.open(path)
    recipe = Recipe(numerics=_numerics(bundle, options.target), smooth=options.smooth, max_error=NO_LIMIT)
    quantizer = Quantizer(bundle, load_statistics(bundle), recipe, report=report)
    with open_trials(bundle, quantizer, options) as trials:
        measured = measure(trials, quantizer.layers(), clock, options, report or _silent)
    found = _report(bundle, recipe, options, trials, measured, clock)
    save_sensitivity(bundle, found)
    return found


class Measured:
    """What `measure` found, before it is put in order."""

    def __init__(self, plan: Plan, layers: list[LayerCost]) -> None:
        self.plan = plan
        self.layers = layers
        self.all_quantised: Effect | None = None
        self.only: dict[str, Effect] = {}
        self.all_but: dict[str, Effect] = {}


def measure(
    trials: Trials, layers: Sequence[LayerCost], clock: Clock, options: MeasureOptions, report: Report
) -> Measured:
    """All quantised, each of the worst layers alone, and all but each of them, in the time there is."""
    candidates = quantisable(layers)
    worst = [row.name for row in by_local_error(candidates)[: options.worst]]
    total = 2 * len(worst) + 2
    report("timing the float model and all layers quantised", 0, total)
    measured = Measured(make_plan(trials, clock, options, ranked=total, searched=0), list(layers))
    count = measured.plan.rank_samples
    measured.all_quantised = trials.measure("mixed", trials.candidates.all_layers, count)
    done = 2
    trial_s = measured.plan.load_s + count * measured.plan.answer_s

    def told(name: str, effect: Effect) -> None:
        nonlocal done
        done += 1
        report(", ".join(part for part in (f"{name}: {effect_text(effect)}", clock.tell()) if part), done, total)

    told_all = f"all layers quantised: {effect_text(measured.all_quantised)}, {count} samples"
    report(told_all, done, total)
    trials.candidates.forget_but("float")
    measured.only = measure_layers(trials, worst, count, in_time=_share(clock, trial_s, 0.6), told=told)
    trials.candidates.forget_but("quantised")
    measured.all_but = measure_layers(
        trials, worst, count, in_time=_share(clock, trial_s, 1.0), told=told, all_but=True
    )
    return measured


def by_local_error(layers: Sequence[LayerCost]) -> list[LayerCost]:
    """The layers, the one with the largest local error first."""
    return sorted(layers, key=lambda row: (-(row.local_error or 0.0), row.name))


def rank(layers: Sequence[LayerCost], shares: dict[str, float], measured: Measured) -> list[LayerSensitivity]:
    """One row a quantisable layer, the most harmful first."""
    errors = {row.name: row.local_error or 0.0 for row in quantisable(layers)}
    harm = predict_harm(errors, {name: effect.log_likelihood_shift for name, effect in measured.only.items()})
    rows = [
        LayerSensitivity(
            layer=name,
            local_error=error,
            share=shares[name],
            harm=harm[name],
            predicted=name not in measured.only,
            only=measured.only.get(name),
            all_but=measured.all_but.get(name),
        )
        for name, error in errors.items()
    ]
    return sorted(rows, key=lambda row: (-row.harm, -row.local_error, row.layer))


def _report(
    bundle: Bundle,
    recipe: Recipe,
    options: SensitivityOptions,
    trials: Trials,
    measured: Measured,
    clock: Clock,
) -> SensitivityReport:
    backend = trials.candidates.backend
    shares, source = shares_of_time(measured.layers, measured.plan.graph_ms, backend)
    calibration = bundle.manifest.calibration
    return SensitivityReport(
        fingerprint=bundle.fingerprint("fp32"),
        calibration_sha256=calibration.sha256 if calibration else "",
        numerics=recipe.numerics,
        backend=backend,
        dataset=options.data,
        seed=options.seed,
        samples=measured.plan.rank_samples,
        seconds=clock.spent_s,
        share_source=source,
        all_quantised=measured.all_quantised,
        layers=rank(measured.layers, shares, measured),
        warnings=_warnings(trials, measured, options),
    )


def _warnings(trials: Trials, measured: Measured, options: SensitivityOptions) -> list[str]:
    warnings = weak_points(trials, measured.plan.rank_samples)
    wanted = min(options.worst, len(quantisable(measured.layers)))
    if len(measured.all_but) < wanted:
        warnings.append(
            f"The time was enough for {len(measured.only)} layers alone and {len(measured.all_but)} left out, of "
            f"{wanted}. Run the command again: it goes on from here."
        )
    return warnings


def _numerics(bundle: Bundle, name: str | None) -> Numerics:
    return target(name or bundle.manifest.target).numerics_of("mixed")[0]


def _share(clock: Clock, seconds: float, share: float) -> Callable[[], bool]:
    return lambda: clock.allows(seconds, share=share)


def _silent(what: str, done: int, total: int) -> None:
    """The report of a caller who does not ask for one."""
