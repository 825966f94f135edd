"""What the sensitivity ranking and the mixed search share: options, the held-out samples, the plan, shares of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import msgspec

import edgevqa
from edgevqa.calibration.quantization.quantizer import LayerCost, Quantizer
from edgevqa.calibration.quantization.recipe import Recipe
from edgevqa.calibration.search.candidates import Candidates
from edgevqa.calibration.search.clock import Clock
from edgevqa.calibration.search.held_out import FEW, FEWEST, held_out
from edgevqa.calibration.search.records import Plan, Records
from edgevqa.calibration.search.trials import Mode, Trials
from edgevqa.evaluation.answers import scored_samples
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sensitivity import Effect
from edgevqa.runtime.sessions import possible_backends

Report = Callable[[str, int, int], None]
PROBE = 16  # samples that are timed
RANK_CAP = 256  # samples that are enough to rank layers by likelihood
SEARCH_CAP = 2000


class MeasureOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How layers are measured.

    `data` is a data set's spec; its questions that calibration did not see are used, in an order drawn with `seed`.
    `samples` None takes as many as `time_limit_s` (None: no limit) allows. The `worst` layers by local error are
    measured on answers. `backend` and `threads` run the candidates.
    """

    data: str
    samples: int | None = None
    time_limit_s: float | None = None
    seed: int = 0
    worst: int = 20
    backend: str = "auto"
    threads: int = 0
    max_batch: int = 8

    def __post_init__(self) -> None:
        lowest = {"samples": FEWEST, "seed": 0, "worst": 1, "threads": 0, "max_batch": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; expected at least {least}.")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise InputError(f"The time limit is {self.time_limit_s} seconds; expected more than 0.")


@contextmanager
def open_trials(bundle: Bundle, quantizer: Quantizer, options: MeasureOptions) -> Generator[Trials, None, None]:
    """Everything that measures candidates, which run inside FP32 whatever the numerics.

    Raises `InputError` for data that calibration has used up, and for a model that gives no answers.
    """
    if not flow_entry(bundle.manifest).answers:
        raise InputError(
            "The model gives arrays, no answers that could tell what a layer costs. "
            "`edgevqa quantize --precision int8` measures each layer's own error."
        )
    backend = backend_for(quantizer.recipe.numerics, options.backend)
    found = held_out(options.data, bundle.manifest.calibration, seed=options.seed, limit=_wanted(options))
    samples = scored_samples(bundle.manifest, found)
    pipeline = PipelineOptions(backend=backend, threads=options.threads, max_batch=options.max_batch, check=False)
    layers = quantisable(quantizer.layers())
    by_graph = {graph: frozenset(row.name for row in layers if row.graph == graph) for graph in quantizer.graphs}
    records = Records(cache_dir() / "searches", _settings(bundle, quantizer.recipe, options, samples, backend))
    with Candidates(bundle, by_graph, quantizer.inside_fp32(), pipeline) as candidates:
        yield Trials(candidates, samples, records)


def backend_for(numerics: Numerics, name: str) -> str:
    """The backend called `name`; for "auto" the installed one that runs these numerics best, inside FP32."""
    measured: Numerics = "s8-fp32" if numerics == "s8-fp16" else numerics
    rows = possible_backends(name)
    return min(rows, key=lambda row: row.likes.index(measured) if measured in row.likes else len(row.likes)).name


def quantisable(layers: Iterable[LayerCost]) -> list[LayerCost]:
    """The layers that may be quantised or kept high: all but those that always stay high."""
    return [row for row in layers if row.reason is None and row.local_error is not None]


def make_plan(trials: Trials, clock: Clock, options: MeasureOptions, *, ranked: int, searched: int) -> Plan:
    """How many samples to use for `ranked` trials of a ranking and `searched` trials of a search.

    Made once for a request and remembered, so that a rerun finds its trials; what is timed is a float run and the
    all-quantised candidate on a few samples.
    """
    request = _request(options, ranked, searched)
    known = trials.records.plan(request)
    if known is not None:
        return known
    probe = min(PROBE, len(trials.samples))
    trials.warm_up()
    start = time.monotonic()
    trials.reference(probe)
    float_s = (time.monotonic() - start) / probe
    load_s = _load_seconds(trials)
    start = time.monotonic()
    trials.measure("mixed", trials.candidates.all_layers, probe)
    answer_s = max(float_s, (time.monotonic() - start) / probe)
    left = clock.left_s
    ranking = 0.4 if searched else 0.9
    plan = Plan(
        request=request,
        rank_samples=_count(trials, options, RANK_CAP, (left * ranking / (ranked + 1) - load_s) / answer_s),
        samples=_count(trials, options, SEARCH_CAP, (left * 0.5 / (searched + 1) - load_s) / answer_s),
        answer_s=answer_s,
        load_s=load_s,
        graph_ms=trials.float_graph_ms,
    )
    trials.records.add(plan)
    return plan


def shares_of_time(
    layers: Sequence[LayerCost], graph_ms: Mapping[str, float], backend: str
) -> tuple[dict[str, float], str]:
    """Each layer's part (0 to 1) of the time of a float answer, and a sentence about where that comes from.

    A graph's measured time is shared out by multiplications among its Linear layers, the head included; what else the
    graph does is spread over them. Without measured times, multiplications alone decide.
    """
    macs = {row.name: row.macs for row in layers}
    total_ms = math.fsum(graph_ms.values())
    if total_ms <= 0:
        total = math.fsum(macs.values()) or 1.0
        return {name: value / total for name, value in macs.items()}, "multiplications an answer (nothing was timed)"
    of_graph = {graph: math.fsum(row.macs for row in layers if row.graph == graph) or 1.0 for graph in graph_ms}
    shares = {
        row.name: graph_ms.get(row.graph, 0.0) / total_ms * row.macs / of_graph.get(row.graph, 1.0) for row in layers
    }
    return shares, f"float graph times measured with {backend} on this machine, shared out by multiplications"


def measure_layers(
    trials: Trials,
    names: Sequence[str],
    count: int,
    *,
    in_time: Callable[[], bool],
    told: Callable[[str, Effect], None],
    all_but: bool = False,
) -> dict[str, Effect]:
    """The effect of each layer alone (or of all but it), as far as the time goes; what is known costs none."""
    found: dict[str, Effect] = {}
    for name in names:
        mode: Mode = "mixed" if all_but else "only"
        quantised = trials.candidates.all_layers - {name} if all_but else frozenset({name})
        if not trials.known(mode, quantised, count) and not in_time():
            continue
        found[name] = trials.measure(mode, quantised, count)
        told(f"{'all but ' if all_but else ''}{name}", found[name])
    return found


def weak_points(trials: Trials, samples: int) -> list[str]:
    """What makes the figures weak, for the report."""
    warnings: list[str] = []
    if samples < FEW:
        warnings.append(f"Only {samples} samples: trust the likelihoods more than the answers, and give more time.")
    if trials.metric == "agreement":
        warnings.append("The data set has no answers for every question: agreement with the float model is used.")
    return warnings


def effect_text(effect: Effect) -> str:
    """An effect in some words."""
    cost, shift = effect.log_likelihood_cost, effect.log_likelihood_shift
    return f"{effect.agreement:.1f} % agree, {cost:+.4f} nats (shifts of {shift:.4f})"


def _load_seconds(trials: Trials) -> float:
    """How long writing and loading all graphs takes; a candidate changes about one of them."""
    start = time.monotonic()
    with trials.candidates.pipeline(trials.candidates.mixed(trials.candidates.all_layers)):
        pass
    return (time.monotonic() - start) / max(len(trials.candidates.layers), 1)


def _count(trials: Trials, options: MeasureOptions, cap: int, fits: float) -> int:
    """Samples that fit, in whole batches; what was asked for wins."""
    if options.samples is not None:
        return min(options.samples, len(trials.samples))
    count = cap if math.isinf(fits) else min(cap, max(int(fits) // options.max_batch * options.max_batch, FEWEST))
    return min(count, len(trials.samples))


def _wanted(options: MeasureOptions) -> int:
    """Samples to draw: twice what a candidate is measured with, so that the winner meets fresh ones."""
    return 2 * (options.samples or SEARCH_CAP)


def _request(options: MeasureOptions, ranked: int, searched: int) -> str:
    return f"samples={options.samples} time={options.time_limit_s} ranked={ranked} searched={searched > 0}"


def _settings(
    bundle: Bundle, recipe: Recipe, options: MeasureOptions, samples: Sequence[Sample], backend: str
) -> dict[str, object]:
    calibration = bundle.manifest.calibration
    first = "\n".join(f"{sample.question_id} {sample.question} {sample.answers}" for sample in samples[:64])
    return {
        "edgevqa": edgevqa.__version__,
        "bundle": bundle.fingerprint("fp32"),
        "calibration": calibration.sha256 if calibration else None,
        "recipe": recipe.to_json(),
        "seed": options.seed,
        "backend": backend,
        "batch": options.max_batch,
        "samples": sha256_bytes(first.encode()),
    }
