"""What the GPU benchmark measures: tasks for its processes, the figures that come back, and the bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgevqa.runtime.benchmark import Spread
from edgevqa.runtime.bundle import Bundle

VISION_BAR, SPEED_BAR, AGREEMENT_BAR = 0.55, 3.0, 0.999
VISION_BATCH = 8
EAGER = "torch-eager"
VISION_GRAPHS = ("vision_trunk", "vision_fusion")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model to measure: its bundle, and what PyTorch loads (a checkpoint with its yaml and root, or `reference`)."""

    name: str
    bundle: str
    source: str
    config: str | None = None
    root: str = "."


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One process: what runs, in which precision, and how long it is measured."""

    runner: str
    model: Model
    precision: str
    rounds: int
    batches: tuple[int, ...]
    samples: int
    device: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one process measured. Milliseconds; loading, compiling and warm-up are left out.

    `latency_ms` has a first answer (nothing known) and a next one (same picture, new question) at batch 1, `answer_ms`
    whole batches of new pictures, `graph_ms` one graph with random inputs of a batch, copied from the host. Memory:
    `process_mb` is the process's peak, `gpu_mb` what the GPU had in use while it ran, beyond what was before.
    """

    runner: str
    precision: str
    answers: list[str]
    latency_ms: dict[str, Spread]
    tokens: dict[str, int]
    answer_ms: dict[int, Spread]
    graph_ms: dict[str, dict[int, Spread]]
    not_run: dict[str, str] = {}
    decode_tokens_per_s: float | None = None
    load_s: float | None = None
    process_mb: float | None = None
    gpu_mb: float | None = None
    joules_per_answer: float | None = None
    energy_sensors: list[str] = []


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """What the device does at best, as PyTorch measures it: matrix products, and copying (bytes read and written)."""

    device: str
    dtype: str
    matmul_size: int
    matmul_tflops: float
    copy_gb_per_s: float


def vision_flops(bundle: Bundle, variant: str, graph: str, words: int) -> float:
    """Floating-point operations of a vision graph for one row: two for every weight and token, and those of attention."""
    spec, info = bundle.graph(variant, graph), bundle.manifest.model
    _, tokens, width = (int(axis) if isinstance(axis, int) else 1 for axis in spec.outputs[0].shape)
    linear = 2.0 * spec.parameters * tokens
    if graph == "vision_trunk":
        return linear + 4.0 * tokens * tokens * width * int(info["trunk_layers"])
    return linear + 4.0 * tokens * (tokens + words) * width * len(info["fused_layers"])


def agreement(figures: Figures, reference: list[str]) -> float | None:
    """The share of answers that are those of the float bundle on the CPU; None where those are not known."""
    if not reference:
        return None
    pairs = list(zip(figures.answers, reference, strict=True))
    return sum(answer == expected for answer, expected in pairs) / len(pairs)


def utilisation(figures: Figures, model: Model, roofline: Roofline | None, words: int) -> dict[str, float]:
    """The share of the measured matrix rate that each vision graph reaches at batch 8; nothing without that rate."""
    if roofline is None:
        return {}
    bundle = Bundle.open(Path(model.bundle), check=False)
    variant = next(iter(bundle.manifest.variants))  # the graphs' operations are the same in each
    found: dict[str, float] = {}
    for graph in VISION_GRAPHS:
        spread = figures.graph_ms.get(graph, {}).get(VISION_BATCH)
        if spread is not None and graph in bundle.variant(variant).graphs:
            rate = vision_flops(bundle, variant, graph, words) * VISION_BATCH / (spread.p50 * 1e-3)
            found[graph] = rate / (roofline.matmul_tflops * 1e12)
    return found


def missed(results: dict[str, dict[str, Any]]) -> list[str]:
    """The bars that do not hold, model by model; those whose figures could not be measured count as missed."""
    failed: list[str] = []
    for model, result in results.items():
        rows: dict[str, dict[str, Any]] = result["rows"]
        ours = {name: row for name, row in rows.items() if not name.startswith("torch") and row["precision"] == "fp16"}
        if not ours:
            failed.append(f"{model}: no backend ran FP16 on the GPU")
            continue
        for graph in VISION_GRAPHS:
            best = max((row["utilisation"].get(graph, 0.0) for row in ours.values()), default=0.0)
            if model != "reference" and best < VISION_BAR:  # the reference model is too small to fill a GPU
                failed.append(f"{model}: {graph} reaches {best:.1%} of the matrix rate, under {VISION_BAR:.0%}")
        for name, row in ours.items():
            share = row["agreement"]
            if model == "reference" and share is None:  # the other's weights are random
                failed.append(f"{model}: {name} was not compared with the float bundle")
            elif model == "reference" and share < AGREEMENT_BAR:
                failed.append(f"{model}: {name} agrees in {share:.2%} of answers, under {AGREEMENT_BAR:.1%}")
        eager = rows.get(EAGER)
        fastest = min(row["figures"].latency_ms["first"].p50 for row in ours.values())
        times = eager["figures"].latency_ms["first"].p50 / fastest if eager else 0.0
        if times < SPEED_BAR:
            failed.append(f"{model}: a first answer is {times:.2f} x as fast as eager PyTorch's, under {SPEED_BAR}")
    return failed
