"""The mixed search: the fastest choice of quantised layers whose answers stay within a budget of points."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from edgevqa.calibration.quantization.quantizer import LayerCost, Quantizer
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
from edgevqa.calibration.search.raising import predict_harm, raise_until, raising_order
from edgevqa.calibration.search.ranking import by_local_error
from edgevqa.calibration.search.records import Plan
from edgevqa.calibration.search.trials import Trials
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckFailed, InputError
from edgevqa.runtime.sensitivity import Effect

EXPECTED_TRIALS = 14  # of the search proper: to plan the time by
SEARCH_SHARE = 0.85  # of the time; what is left is for fresh samples
IN_BUDGET = 1e-9
USUAL_DROP = 0.5


class SearchOptions(MeasureOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_drop`: points of accuracy on held-out samples (of agreement with the float model where they lack answers).

    A set holds when the drop that was measured is within it; the result says how far the true one may be from that.
    """

    max_drop: float = USUAL_DROP

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_drop < 100:
            raise InputError(f"--max-drop {self.max_drop}: expected points from 0 to under 100, such as 0.5.")


class KeptLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer that stays high, and why.

    `share` is its part of a float answer's time, which quantising it would cut. `alone`: the effect of quantising
    nothing else; `lowered`: the effect of the chosen set (or one with more layers high) with this layer quantised too.
    None where not measured.
    """

    layer: str
    reason: str
    local_error: float | None
    share: float
    alone: Effect | None = None
    lowered: Effect | None = None


class MixedResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the search chose: `high` are the layers to keep high, `kept` the same with the layers that always are.

    `effect` is that of the chosen set on `effect.samples` held-out samples, in points of `metric`; `confirmed` tells
    that half of them took no part in the search. `complete` is False where time ended before every layer kept high had
    been tried lower. `quantised_share` is the part of a float answer's time that is quantised.
    """

    high: frozenset[str]
    kept: list[KeptLayer]
    metric: str
    max_drop: float
    effect: Effect
    all_quantised: Effect
    confirmed: bool
    complete: bool
    trials: int
    seconds: float
    quantised_share: float
    share_source: str
    backend: str
    dataset: str
    warnings: list[str]


def search_mixed(
    bundle: Bundle, quantizer: Quantizer, options: SearchOptions, *, report: Report | None = None
) -> MixedResult:
    """The layers to keep high so that the drop is at most `options.max_drop`, with as much time saved as may be.

    All layers quantised come first; where that fails, layers are raised in the order of harm for time saved and tried
    lower again, and the winner is asked as many fresh questions. Every candidate is remembered: a rerun with the same
    options goes on. Raises `CheckFailed` where no set holds that leaves a layer quantised
    (float32 itself then is the bundle that does), `InputError` for data that cannot be used.
    """
    with open_trials(bundle, quantizer, options) as trials:
        search = _Search(trials, quantizer.layers(), options, report or (lambda what, done, total: None))
        return search.run()


class _Search:
    """One search at work; `done` counts the candidates that were looked at."""

    def __init__(self, trials: Trials, layers: list[LayerCost], options: SearchOptions, report: Report) -> None:
        self.trials = trials
        self.layers = {row.name: row for row in layers}
        self.names = [row.name for row in by_local_error(quantisable(layers))]
        self.options = options
        self.clock = Clock(options.time_limit_s)
        self.report = report
        self.done = 0
        self.alone: dict[str, Effect] = {}
        self.tried: dict[frozenset[str], Effect] = {}
        self.shares: dict[str, float] = {}
        self.source = ""
        self.searched = 0  # samples that a candidate of the search is measured with

    def run(self) -> MixedResult:
        worst = self.names[: self.options.worst]
        if not worst:
            raise CheckFailed("No layer of this bundle can be quantised, so there is no mixed variant. Use fp32.")
        self.report("timing the float model and all layers quantised", 0, self._total)
        plan = make_plan(self.trials, self.clock, self.options, ranked=len(worst), searched=EXPECTED_TRIALS)
        self.shares, self.source = shares_of_time(
            list(self.layers.values()), plan.graph_ms, self.trials.candidates.backend
        )
        self.searched = plan.samples
        order: list[str] = []
        high = frozenset[str]()
        complete = True
        holds = self._holds(plan.samples)
        if not holds(high):
            order = self._order(worst, plan)
            high, complete = self._raise(order, plan, plan.samples, high, SEARCH_SHARE)
        fresh = min(2 * plan.samples, len(self.trials.samples))
        confirmed = self._may_ask(high, fresh, plan)
        if confirmed and not self._holds(fresh)(high):
            order = order or self._order(worst, plan)
            high, complete = self._raise(order, plan, fresh, high, 1.0)
        return self._result(high, fresh if confirmed else plan.samples, confirmed=confirmed, complete=complete)

    @property
    def _total(self) -> int:
        return max(self.options.worst + EXPECTED_TRIALS + 2, self.done + 1)

    def _measure(self, high: frozenset[str], samples: int) -> Effect:
        return self.trials.measure("mixed", self.trials.candidates.all_layers - high, samples)

    def _holds(self, samples: int) -> Callable[[frozenset[str]], bool]:
        def holds(high: frozenset[str]) -> bool:
            again = self.trials.known("mixed", self.trials.candidates.all_layers - high, samples) and high in self.tried
            effect = self.tried[high] = self._measure(high, samples)
            if not again:
                self._tell(f"{len(high)} of {len(self.names)} layers high: {_drop_text(effect, self.trials.metric)}")
            return effect.drop <= self.options.max_drop + IN_BUDGET

        return holds

    def _tell(self, what: str) -> None:
        self.done += 1
        self.report(", ".join(part for part in (what, self.clock.tell()) if part), self.done, self._total)

    def _may_ask(self, high: frozenset[str], samples: int, plan: Plan) -> bool:
        """Whether the fresh samples are there, and the time to ask them (or the answers, from an earlier run)."""
        if samples <= plan.samples:
            return False
        known = self.trials.known("mixed", self.trials.candidates.all_layers - high, samples)
        return known or self.clock.allows(plan.load_s + 1.5 * samples * plan.answer_s)

    def _order(self, worst: list[str], plan: Plan) -> list[str]:
        """The layers in the order in which they are raised; the worst are measured alone, as far as the time goes."""
        seconds = plan.load_s + plan.rank_samples * plan.answer_s
        self.trials.candidates.forget_but("float")
        self.alone = measure_layers(
            self.trials,
            worst,
            plan.rank_samples,
            in_time=lambda: self.clock.allows(seconds, share=0.5),
            told=lambda name, effect: self._tell(f"{name} alone: {effect_text(effect)}"),
        )
        self.trials.candidates.forget_but("quantised")
        errors = {name: self.layers[name].local_error or 0.0 for name in self.names}
        harm = predict_harm(errors, {name: effect.log_likelihood_shift for name, effect in self.alone.items()})
        return raising_order(harm, self.shares)

    def _raise(
        self, order: list[str], plan: Plan, samples: int, start: frozenset[str], share: float
    ) -> tuple[frozenset[str], bool]:
        seconds = plan.load_s + samples * plan.answer_s
        raised = raise_until(
            order,
            self.shares,
            self._holds(samples),
            in_time=lambda: self.clock.allows(seconds, share=share),
            start=start,
        )
        if raised.high is None:
            raise CheckFailed(self._none_holds(samples, order, complete=raised.complete))
        return raised.high, raised.complete

    def _none_holds(self, samples: int, order: list[str], *, complete: bool) -> str:
        most = self._measure(frozenset(order[: len(order) - 1]), samples)
        more_time = "" if complete else "more time to try every layer alone, "
        return (
            f"No mixed variant holds --max-drop {self.options.max_drop:g}: with all but one of {len(order)} layers high, "
            f"{_drop_text(most, self.trials.metric)} on {samples} samples. With every layer high it is the float model, "
            f"which the bundle already has as fp32; nothing was written. Give {more_time}more points, or a calibration "
            "with more and more typical data."
        )

    def _result(self, high: frozenset[str], samples: int, *, confirmed: bool, complete: bool) -> MixedResult:
        effect = self._measure(high, samples)
        quantised = [self.shares[name] for name in self.names if name not in high]
        return MixedResult(
            high=high,
            kept=self._kept(high),
            metric=self.trials.metric,
            max_drop=self.options.max_drop,
            effect=effect,
            all_quantised=self._measure(frozenset(), self.searched),
            confirmed=confirmed,
            complete=complete,
            trials=self.done,
            seconds=self.clock.spent_s,
            quantised_share=math.fsum(quantised),
            share_source=self.source,
            backend=self.trials.candidates.backend,
            dataset=self.options.data,
            warnings=self._warnings(effect, confirmed=confirmed, complete=complete),
        )

    def _kept(self, high: frozenset[str]) -> list[KeptLayer]:
        """The layers kept high: those the budget asks for first, each part by the time it would save."""
        rows: list[KeptLayer] = []
        for name in sorted(high, key=lambda name: -self.shares[name]):
            rows.append(
                KeptLayer(
                    layer=name,
                    reason="the budget",
                    local_error=self.layers[name].local_error,
                    share=self.shares[name],
                    alone=self.alone.get(name),
                    lowered=self._lowered(high, name),
                )
            )
        always = [row for row in self.layers.values() if row.reason is not None]
        return rows + [
            KeptLayer(layer=row.name, reason=row.reason or "", local_error=row.local_error, share=self.shares[row.name])
            for row in sorted(always, key=lambda row: -self.shares[row.name])
        ]

    def _lowered(self, high: frozenset[str], name: str) -> Effect | None:
        """What was seen of the choice with this layer quantised, or of a set that is as near to it as was tried."""
        found = [tried for tried in self.tried if name not in tried and tried >= high - {name}]
        return self.tried[min(found, key=len)] if found else None

    def _warnings(self, effect: Effect, *, confirmed: bool, complete: bool) -> list[str]:
        warnings = weak_points(self.trials, effect.samples)
        highest = effect.drop_ci95[1]
        if highest > self.options.max_drop:
            warnings.append(
                f"On {effect.samples} samples the drop is {effect.drop:+.2f} points, but it may be {highest:.2f} "
                "(95 % interval): use more samples to be sure."
            )
        if not confirmed:
            warnings.append(
                "There was no data or no time to confirm the choice on samples that the search did not see."
            )
        if not complete:
            warnings.append(
                "Time ended before every layer kept high was tried lower: give more time for a faster choice. A rerun "
                "goes on from here."
            )
        return warnings


def _drop_text(effect: Effect, metric: str) -> str:
    low, high = effect.drop_ci95
    return f"{effect.drop:+.2f} points of {metric} lost (95 % interval {low:+.2f} to {high:+.2f})"
