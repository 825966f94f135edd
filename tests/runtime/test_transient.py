"""Graphs loaded one at a time give the same answers, and never two sessions at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevqa.export.samples import PICTURES, sample_questions
from edgevqa.runtime import transient
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import open_session
from edgevqa.runtime.sessions.base import Session


def test_same_answers_with_one_session_at_a_time(reference_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(reference_bundle)
    opened: list[str] = []
    alive: list[str] = []

    def watched(bundle: Bundle, variant: str, graph: str, **options: object) -> Session:
        session = open_session(bundle, variant, graph, backend="onnxruntime")
        close = session.close

        def closing() -> None:
            alive.remove(graph)
            close()

        opened.append(graph)
        alive.append(graph)
        assert len(alive) == 1, f"{alive} are open together"
        monkeypatch.setattr(session, "close", closing)
        return session

    monkeypatch.setattr(transient, "open_session", watched)
    pairs = [(PICTURES / sample.image, sample.question) for sample in sample_questions()][:6]
    options = PipelineOptions(backend="onnxruntime", max_batch=3)
    graphs = transient.one_at_a_time(bundle, "fp32")
    with Pipeline(bundle, graphs, options, variant="fp32", backend="onnxruntime") as pipeline:
        found = pipeline.answer_pairs(pairs)
    with Pipeline.from_bundle(bundle, options) as pipeline:
        expected = pipeline.answer_pairs(pairs)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert alive == []
    assert opened.count("language_decoder") == 2, "once a batch, not once a token"
