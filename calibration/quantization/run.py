"""Quantise a calibrated bundle: add variants of lower precision to it, checked and with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from edgevqa.calibration.observation.ranges import METHODS
from edgevqa.calibration.quantization.names import DECODER, ENCODERS
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import calibrate_line
from edgevqa.runtime.errors import InputError, require
from edgevqa.runtime.manifest import VariantSpec
from edgevqa.runtime.staging import check_place
from edgevqa.runtime.targets import target

if TYPE_CHECKING:
    from edgevqa.calibration.observation.run import Calibrated
    from edgevqa.calibration.quantization.answer_check import AnswerCheck
    from edgevqa.calibration.quantization.variant_report import VariantReport

AUTO = "auto"
Lowered = Literal["fp16", "bf16", "int8", "fp8", "mixed"]
LanguageMode = Literal["int8", "weight-int8", "weight-int4", "high"]
Report = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


class QuantizeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to make of a bundle, and how.

    `precision` is written for each of `targets` (none: the bundle's own). `data` is a data set's spec: up to `samples`
    of its questions that calibration did not see are asked of the float model and of each new variant, which is
    published only if at least `min_agreement` percent of the answers stay. It is needed for mixed, whose accuracy falls
    by at most `max_drop` points (None: 0.5), searched for at most `time_limit_s` seconds (None: no limit); the other
    precisions search nothing and refuse both.

    `method` is how ranges are chosen (None: what calibration was told), `smooth` and `bias_correction` switch SmoothQuant
    and the correction of biases, `decoder` and `encoder` say how the language head is quantised, with `block_size` inputs a
    scale where weights alone are. What a graph is made of goes into the variant's name (`names.py`). `residual` quantises
    residual adds too, which ruins most vision transformers: adds where it would are kept high all the same.
    """

    precision: Lowered
    targets: tuple[str, ...] = ()
    data: str | None = None
    samples: int = 200
    min_agreement: float = 90.0
    max_drop: float | None = None
    time_limit_s: float | None = None
    method: str | None = None
    smooth: bool = True
    bias_correction: bool = False
    decoder: LanguageMode = "int8"
    encoder: LanguageMode = "int8"
    block_size: int | None = None
    residual: bool = False
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        _check_choice("--precision", self.precision, get_args(Lowered))
        _check_choice("--decoder", self.decoder, get_args(LanguageMode))
        _check_choice("--encoder", self.encoder, get_args(LanguageMode))
        if self.method is not None:
            _check_choice("--method", self.method, (AUTO, *METHODS))
        self._refuse_idle()
        if self.precision == "mixed" and self.data is None:
            raise InputError("--precision mixed needs --data: questions to measure the accuracy with.")
        if self.samples < 1:
            raise InputError(f"--samples {self.samples}: expected at least 1.")
        if not 0 <= self.min_agreement <= 100:
            raise InputError(f"--min-agreement {self.min_agreement:g}: expected a percentage from 0 to 100.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop {self.max_drop:g}: expected the points that may be lost, 0 or more.")
        for name in self.targets:
            target(name).numerics_of(self.precision)

    def _refuse_idle(self) -> None:
        """Raise `InputError` for an option that would change nothing: whoever gave it expects that it does."""
        searching = {"--max-drop": self.max_drop, "--time-limit": self.time_limit_s}
        given = [name for name, value in searching.items() if value is not None]
        if given and self.precision != "mixed":
            raise InputError(
                f"{' and '.join(given)}: --precision {self.precision} searches nothing, so this would change nothing. Say "
                f"--precision mixed, or leave {' and '.join(given)} out (--min-agreement refuses variants "
                "whose answers differ)."
            )
        modes = {"--decoder": self.decoder, "--encoder": self.encoder}
        given = [f"{name} {mode}" for name, mode in modes.items() if mode != "int8"] + ["--residual"] * self.residual
        if given and self.precision in ("fp16", "bf16"):
            raise InputError(
                f"{' and '.join(given)}: {self.precision} casts the whole model and quantises nothing. Say --precision int8 "
                f"(its variant is kept beside the {self.precision} one), or leave it out."
            )
        if self.block_size is not None and not any(mode.startswith("weight-") for mode in modes.values()):
            raise InputError(
                f"--block-size {self.block_size} is for weights alone: say --decoder weight-int4 or weight-int8 (or "
                "--encoder), or leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class QuantizedVariant:
    """A new variant; `report` is None for fp16 and bf16, whose own report lists what stayed FP32."""

    name: str
    spec: VariantSpec
    report: VariantReport | None
    check: AnswerCheck | None
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The bundle with its new variants. `calibrated`: the bundle had no calibration, so one was made first."""

    bundle: Bundle
    variants: list[QuantizedVariant]
    float_size_bytes: int
    calibrated: bool
    warnings: list[str]
    seconds: float


def quantize(bundle_path: str | Path, options: QuantizeOptions, *, report: Report | None = None) -> Quantized:
    """Add the variants that `options` asks for to a calibrated bundle, in place of those of the same names.

    A bundle without calibration is calibrated first where there is data; where there is none, a decoder's weights can be
    quantised alone all the same, inside float32, and all else stays float. The bundle is changed at the very end, with all
    new variants, or not at all. Raises `InputError` for a bundle without calibration and data, targets that cannot run
    the precision, and data that cannot be used; `CheckFailed` where a variant's answers differ too much, or no mixed
    variant holds the budget.
    """
    require("onnx_ir", extra="export", purpose="Quantising a model")
    require("onnxruntime", extra="cpu", purpose="Checking what was quantised")
    from edgevqa.calibration.quantization.variants import wanted_numerics, write_variants

    started = time.perf_counter()
    advance = report or (lambda what, done, total: None)
    bundle = Bundle.open(bundle_path)
    _refuse_absent(bundle, options)
    wanted_numerics(bundle, options)  # what a target cannot run is said before it is calibrated for it
    check_place(bundle.root, in_place=True)  # before the work, not at its end
    left_out: list[str] = []
    calibrated = bundle.manifest.calibration is None and not _weights_alone(bundle, options)
    if calibrated:
        done = _calibrate(bundle, options, advance)
        bundle, left_out = done.bundle, done.left_out
    made, warnings = write_variants(bundle, options, advance)
    return Quantized(
        bundle=Bundle.open(bundle_path),
        variants=made,
        float_size_bytes=bundle.manifest.variants["fp32"].size_bytes,
        calibrated=calibrated,
        warnings=[*left_out, *warnings],
        seconds=time.perf_counter() - started,
    )


def _refuse_absent(bundle: Bundle, options: QuantizeOptions) -> None:
    """Raise `InputError` for how graphs are quantised that the model does not have."""
    present = {graph for variant in bundle.manifest.variants.values() for graph in variant.graphs}
    modes = (("--decoder", options.decoder, (DECODER,)), ("--encoder", options.encoder, ENCODERS))
    for name, mode, graphs in modes:
        if mode != "int8" and not present & set(graphs):
            raise InputError(
                f"{name} {mode}: this model ({bundle.manifest.family}) has no graph {' or '.join(graphs)}, so this would "
                f"change nothing. Its graphs are {', '.join(sorted(present))}. Leave {name} out."
            )


def _calibrate(bundle: Bundle, options: QuantizeOptions, report: Report) -> Calibrated:
    """The bundle with a calibration from a part of the data that leaves the rest to check with."""
    from edgevqa.calibration.observation.run import CalibrateOptions, calibrate
    from edgevqa.evaluation.datasets.registry import open_dataset

    if options.data is None:
        raise InputError(
            f"{bundle.root} has no calibration, which --precision {options.precision} needs. Make one: "
            f"{calibrate_line(bundle.root)}. Or give --data DATA here, and it is made first."
        )
    size = len(open_dataset(options.data))
    chosen = CalibrateOptions(
        data=options.data, samples=max(1, min(512, size * 3 // 4)), seed=options.seed, threads=options.threads
    )
    return calibrate(bundle.root, chosen, report=report)


def _weights_alone(bundle: Bundle, options: QuantizeOptions) -> bool:
    """Whether what is asked for needs no calibration: weights of the decoder, and no FP16, which may overflow."""
    names = options.targets or (bundle.manifest.target,)
    alone = options.precision == "int8" and options.decoder in ("weight-int8", "weight-int4") and options.data is None
    return alone and all(target(name).numerics_of("int8")[0].endswith("-fp32") for name in names)


def _check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InputError(f"{option} {given}: expected {', '.join(known)}.")
