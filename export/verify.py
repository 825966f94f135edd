"""Compare written graphs with eager PyTorch, one graph at a time, and the answers end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgevqa.export.spec import AnswerCase, Array, Case
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.manifest import ParityRow, ParitySpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import Answer, PipelineOptions
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.transient import one_at_a_time

BACKEND = "onnxruntime"
ANSWERS_AT_ONCE = 6  # each batch opens every graph once; more at once would make the attention scores large
MAPPED_FROM_BYTES = 1 << 30
RELATIVE = 2e-6  # of the largest value: float32 has 6e-8, and real ViTs carry values in the thousands


def session_options(bundle: Bundle, variant: str) -> SessionOptions:
    """Big weights stay in their file: sessions that copy them would need as much memory again as all of the export."""
    weights = bundle.variant(variant).weights
    return SessionOptions(map_weights=weights is not None and weights.size_bytes > MAPPED_FROM_BYTES)


def compare_graphs(
    bundle: Bundle, variant: str, cases: Iterable[Case], *, tolerance: float, progress: Callable[[str], None]
) -> list[ParityRow]:
    """Run every case through its graph; one row for each graph, output kind and kind of samples.

    Layered outputs (`cross_key.0`, `cross_key.1`, ...) share a row, which shows the worst of them.
    """
    rows: dict[tuple[str, str, str], ParityRow] = {}
    by_graph: dict[str, list[Case]] = {}
    for case in cases:
        by_graph.setdefault(case.graph, []).append(case)
    for graph, graph_cases in by_graph.items():
        progress(graph)
        with open_session(bundle, variant, graph, backend=BACKEND, options=session_options(bundle, variant)) as session:
            for case in graph_cases:
                found = session.run(case.inputs)
                for name, expected in case.expected.items():
                    row = _row(case, name, found[name].numpy(), expected, tolerance)
                    key = (row.graph, row.output, row.samples)
                    rows[key] = worse(rows[key], row) if key in rows else row
    return list(rows.values())


def compare_answers(bundle: Bundle, variant: str, cases: Sequence[AnswerCase]) -> list[tuple[AnswerCase, Answer]]:
    """The cases whose answer from the runtime is not the eager model's, with what the runtime answered."""
    alike: dict[tuple[int | None, tuple[str, ...]], list[AnswerCase]] = {}
    for case in cases:
        alike.setdefault((case.max_new_tokens, case.choices), []).append(case)
    options = PipelineOptions(precision=variant, backend=BACKEND, max_batch=ANSWERS_AT_ONCE)
    graphs = one_at_a_time(bundle, variant, options=session_options(bundle, variant))
    different: list[tuple[AnswerCase, Answer]] = []
    labels = bundle.manifest.labels
    with Pipeline(bundle, graphs, options, variant=variant, backend=BACKEND) as pipeline:
        for (tokens, choices), group in alike.items():
            pairs = [(case.image, case.question) for case in group]
            answers = pipeline.answer_pairs(pairs, max_new_tokens=tokens, choices=choices or None, num_beams=1)
            different += [pair for pair in zip(group, answers, strict=True) if not _is_expected(*pair, labels)]
    return different


def _is_expected(case: AnswerCase, answer: Answer, labels: Sequence[str]) -> bool:
    text = labels[answer.tokens[0]] if labels else answer.text  # what the model calls it, as it may call other classes
    return text == case.expected and case.tokens in (None, answer.tokens)


def parity(rows: list[ParityRow], answers: int, different: int, *, left_out: Sequence[str] = ()) -> ParitySpec:
    """The record that goes into the manifest."""
    return ParitySpec(
        backend=BACKEND,
        rows=rows,
        answers_compared=answers,
        answers_identical=answers - different,
        left_out=list(left_out),
    )


def _row(case: Case, name: str, found: Array, expected: Array, tolerance: float) -> ParityRow:
    difference = max_abs_difference(found, expected)
    tolerance = tolerance + RELATIVE * float(np.abs(expected).max(initial=0))
    return ParityRow(
        graph=case.graph,
        output=name.partition(".")[0],
        samples=case.samples,
        max_abs_diff=difference,
        cosine=cosine(found, expected),
        tolerance=tolerance,
        passed=difference <= tolerance,
    )


def max_abs_difference(found: Array, expected: Array) -> float:
    """Largest absolute difference; infinite where shapes differ or a value is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    return float("inf") if np.isnan(difference) else float(difference)


def cosine(found: Array, expected: Array) -> float:
    """Cosine of the two arrays as vectors; 0 where shapes differ, 1 where both are zero."""
    if found.shape != expected.shape:
        return 0.0
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 1.0


def worse(a: ParityRow, b: ParityRow) -> ParityRow:
    """One row with the larger difference and the smaller cosine of two."""
    return ParityRow(
        graph=a.graph,
        output=a.output,
        samples=a.samples,
        max_abs_diff=max(a.max_abs_diff, b.max_abs_diff),
        cosine=min(a.cosine, b.cosine),
        tolerance=a.tolerance,
        passed=a.passed and b.passed,
    )
