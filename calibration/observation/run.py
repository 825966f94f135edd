"""Calibrate a bundle: choose samples, observe the float32 model on them, and add what was seen to the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgevqa.calibration.observation.ranges import METHODS
from edgevqa.calibration.observation.samples import CalibrationSet, dataset_name, pick_samples
from edgevqa.calibration.observation.statistics import VARIANT, save_statistics
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import ConfigError, require
from edgevqa.runtime.manifest import CalibrationSpec
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.staging import check_place, clear_write_errors

if TYPE_CHECKING:
    from edgevqa.calibration.observation.collect import Collected
    from edgevqa.calibration.observation.summary import Summary

Report = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""

OBSERVATIONS = "calibration/observations.npz"
SUMMARY = "calibration/summary.json"
AUTO = "auto"


class CalibrateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data` is a data set's spec. `method` is what quantising takes unless told otherwise; `auto` chooses by tensor.

    `threads` 0 is the backend's default.
    """

    data: str
    samples: int = 512
    seed: int = 0
    method: str = AUTO
    threads: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("samples", 1), ("seed", 0), ("threads", 0)):
            value = getattr(self, name)
            if value < lowest:
                raise ConfigError(f"Option {name} is {value}; expected a whole number of at least {lowest}.")
        if self.method not in (AUTO, *METHODS):
            raise ConfigError(f"Unknown method '{self.method}'; expected {', '.join((AUTO, *METHODS))}.")


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The bundle with its calibration, what was seen, and how long it took.

    `resumed_samples` were observed by an earlier run that was interrupted. `left_out` tells of damaged engines that the
    bundle no longer has.
    """

    bundle: Bundle
    summary: Summary
    resumed_samples: int
    seconds: float
    left_out: list[str] = field(default_factory=list)


def calibrate(bundle_path: str | Path, options: CalibrateOptions, *, report: Report | None = None) -> Calibrated:
    """Observe the float32 model of a bundle on real samples and add `calibration/` to it, in place of an older one.

    Variants stay as they are. The bundle is changed at the very end, or not at all; after an interruption the same call
    goes on where it was. Raises `InputError` for data that cannot be calibrated with (noise, blank or equal pictures)
    and for a model that gives NaN or infinities, `MissingExtraError` without onnx_ir or onnxruntime.
    """
    require("onnx_ir", extra="export", purpose="Calibrating a model")
    require("onnxruntime", extra="cpu", purpose="Calibrating a model")
    from edgevqa.calibration.observation.collect import collect
    from edgevqa.calibration.observation.resume import SavedState
    from edgevqa.calibration.observation.summary import summarise

    advance = report or (lambda what, done, total: None)
    started = time.perf_counter()
    advance("check files", 0, 1)
    bundle = Bundle.open(bundle_path)
    check_place(bundle.root, in_place=True)  # before the work, not at its end
    bundle.require_files(VARIANT)
    chosen = pick_samples(
        open_dataset(options.data),
        options.samples,
        options.seed,
        check_question=_question_check(bundle),
        words=bundle.manifest.text is not None,
        advance=lambda done, total: advance("choose samples", done, total),
    )
    saved = SavedState(bundle, chosen)
    with clear_write_errors(bundle.root):
        collected = collect(bundle, chosen, saved, threads=options.threads, report=report)
    steps = len(collected.graphs)
    numbers = iter(range(steps))
    summary = summarise(
        bundle,
        chosen,
        collected,
        method=options.method,
        dataset=dataset_name(options.data),
        advance=lambda: advance("find ranges", next(numbers), steps),
    )
    added = _add(bundle, chosen, collected, summary)
    saved.discard()
    return Calibrated(
        bundle=added,
        summary=summary,
        resumed_samples=collected.resumed_samples,
        seconds=time.perf_counter() - started,
        left_out=list(bundle.left_out().values()),
    )


def _question_check(bundle: Bundle) -> Callable[[str], object] | None:
    """What raises `QuestionError` for a question that the model cannot be asked."""
    questions = Questions.of(bundle)
    return None if questions.main is None else questions.question


def _add(bundle: Bundle, chosen: CalibrationSet, collected: Collected, summary: Summary) -> Bundle:
    """The bundle with the calibration in it."""
    sizes = (tensor.rows.size * 2 for graph in collected.graphs.values() for tensor in graph.inputs.values())
    with BundleWriter.extend(bundle, needed_bytes=sum(sizes)) as writer:
        save_statistics(writer.path(OBSERVATIONS), collected.graphs, fingerprint=bundle.fingerprint(VARIANT))
        spec = CalibrationSpec(
            variant=VARIANT,
            dataset=summary.dataset,
            seed=summary.seed,
            samples=summary.samples,
            sha256=summary.sha256,
            question_ids=chosen.question_ids,
            warnings=summary.warnings,
            summary=writer.add_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n", SUMMARY),
            observations=writer.describe(OBSERVATIONS),
        )
        return writer.finish(msgspec.structs.replace(bundle.manifest, calibration=spec))
