"""Evaluating a variant in a process of its own: figures, answers, agreement, and what happens when a process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from edgevqa.evaluation.children import run_task
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.evaluating import EvaluateOptions, Evaluation, busy_warning, evaluate, warnings_of
from edgevqa.evaluation.metrics import score
from edgevqa.evaluation.plan import plan_row
from edgevqa.evaluation.protocol import Task, encode_line
from edgevqa.evaluation.selection import choose_indices, choose_samples, latency_pairs
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, EdgeVQAError, InputError
from edgevqa.runtime.manifest import CalibrationSpec, FileSpec
from edgevqa.runtime.pipeline import Pipeline

DATA = "scenes:7:32"
ORT = "onnxruntime"


def options(**changes: object) -> EvaluateOptions:
    return msgspec.convert({"data": DATA, "backend": ORT, "latency_runs": 2, **changes}, EvaluateOptions)


def task(bundle: Path, **changes: object) -> Task:
    return msgspec.structs.replace(plan_row(str(bundle), Bundle.open(bundle), "fp32", ORT).task(options()), **changes)


def children() -> list[int]:
    """The process ids of this thread's children."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return [int(number) for number in path.read_text().split()]


def test_the_same_seed_chooses_the_same_samples() -> None:
    chosen = choose_indices(1000, 50, 3)
    assert chosen == sorted(set(chosen)) == choose_indices(1000, 50, 3)
    assert len(chosen) == 50
    assert chosen != choose_indices(1000, 50, 4)
    assert choose_indices(5, None, 0) == choose_indices(5, 9, 0) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="at least 1"):
        choose_indices(5, 0, 0)


def test_timed_questions_come_in_pairs_about_one_picture() -> None:
    samples = choose_samples(open_dataset(DATA), None, 0)
    pairs = latency_pairs(samples, 40, seed=1)
    assert len(pairs) == 40
    assert all(one.image_id == other.image_id and one is not other for one, other in pairs)
    assert {one.question_id for one, _ in pairs[:32]} == {sample.question_id for sample in samples}


@pytest.fixture(scope="module")
def int8(two_precisions: Path) -> Evaluation:
    return evaluate(two_precisions, options(precision="int8", max_batch=4, latency_runs=3))


def test_a_row_tells_what_the_pipeline_answers(two_precisions: Path, int8: Evaluation) -> None:
    """The figures of the process are those of answering here."""
    samples = choose_samples(open_dataset(DATA), None, 0)
    with Pipeline.load(two_precisions, precision="int8", backend=ORT, max_batch=4) as pipeline:
        texts = [each.text for each in pipeline.answer_pairs([(sample.image, sample.question) for sample in samples])]
    with Pipeline.load(two_precisions, precision="fp32", backend=ORT, max_batch=4) as pipeline:
        floats = [each.text for each in pipeline.answer_pairs([(sample.image, sample.question) for sample in samples])]
    scores = score(samples, texts)
    row = int8.row
    assert int8.result.texts == texts
    assert (row.accuracy, row.ci95, row.exact_match, row.anls) == (
        scores.accuracy,
        scores.ci95,
        scores.exact_match,
        scores.anls,
    )
    assert row.by_type == scores.by_type
    same = sum(one == other for one, other in zip(texts, floats, strict=True))
    assert row.changed == len(samples) - same
    assert row.agreement == pytest.approx(100 * same / len(samples))
    assert row.accuracy_drop == pytest.approx(score(samples, floats).accuracy - scores.accuracy)
    assert (row.precision, row.variant, row.numerics, row.backend) == ("int8", "int8-u8-fp32", "u8-fp32", ORT)


def test_a_row_tells_times_memory_and_size(two_precisions: Path, int8: Evaluation) -> None:
    row = int8.row
    assert set(row.latency_ms) == {"first", "next"}
    assert all(0 < spread.lowest <= spread.p50 <= spread.p90 <= spread.p99 for spread in row.latency_ms.values())
    bundle = Bundle.open(two_precisions)
    assert list(row.per_graph_ms) == list(bundle.manifest.variants[row.variant].graphs)
    assert sum(spread.p50 for spread in row.per_graph_ms.values()) < row.latency_ms["first"].highest
    assert row.peak_memory_mb is not None
    assert 50 < row.peak_memory_mb < 2000
    folder = two_precisions / "graphs" / row.variant
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    assert row.size_mb == pytest.approx(on_disk / 1e6)
    assert row.throughput_per_s > 0
    assert (row.energy_j is None) == (row.energy_missing is not None)


def test_predictions_name_every_question(int8: Evaluation) -> None:
    records = int8.predictions()
    assert [record["question_id"] for record in records] == [str(number) for number in range(32)]
    assert [record["prediction"] for record in records] == int8.result.texts
    assert all(0 < record["confidence"] <= 1 for record in records)


def test_data_without_answers_gives_the_agreement_alone(two_precisions: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    lines = ["image,question,answer", *(f"red.png,what color is the {what}?," for what in ("shape", "circle"))]
    (tmp_path / "questions.csv").write_text("\n".join(lines) + "\n")
    row = evaluate(two_precisions, options(data=str(tmp_path), precision="int8", latency_runs=0)).row
    assert (row.n, row.scored, row.accuracy, row.ci95, row.mcnemar) == (2, 0, None, None, None)
    assert row.agreement is not None
    assert row.latency_ms == row.per_graph_ms == {}


def test_a_missing_precision_names_the_command_that_makes_it(two_precisions: Path) -> None:
    with pytest.raises(InputError, match=r"edgevqa quantize .*two\.bundle --precision mixed --data DATA"):
        evaluate(two_precisions, options(precision="mixed"))
    with pytest.raises(InputError, match="'int9' is no precision; expected fp32"):
        evaluate(two_precisions, options(precision="int9"))


def test_samples_seen_in_calibration_are_warned_about(two_precisions: Path) -> None:
    bundle = Bundle.open(two_precisions)
    file = FileSpec(path="calibration/x", sha256="0" * 64, size_bytes=1)
    bundle.manifest = msgspec.structs.replace(
        bundle.manifest,
        calibration=CalibrationSpec(
            variant="fp32",
            dataset="scenes:7:500",
            seed=0,
            samples=3,
            sha256="0" * 64,
            question_ids=["3", "31", "400"],
            warnings=[],
            summary=file,
            observations=file,
        ),
    )
    samples = choose_samples(open_dataset(DATA), None, 0)
    quantised, exact = (plan_row("b", bundle, precision, ORT) for precision in ("int8", "fp32"))
    assert "2 of the 32 questions were used to calibrate" in warnings_of(quantised, DATA, samples)[0]
    assert warnings_of(exact, DATA, samples) == []
    assert warnings_of(quantised, "scenes:8:32", samples) == []


def test_a_process_that_dies_is_reported_with_what_it_reached(two_precisions: Path) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if "answering" in what:
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(EdgeVQAError, match=r"fp32 there.*SIGKILL.*while answering, 8 of 32") as caught:
        run_task(task(two_precisions), "fp32 there", kill)
    assert caught.value.exit_code == 70


def test_an_error_in_the_process_keeps_its_exit_code(two_precisions: Path) -> None:
    with pytest.raises(InputError, match="fp32 here: The data set 'nowhere'"):
        run_task(task(two_precisions, dataset="nowhere"), "fp32 here")


def test_an_interrupt_leaves_no_process(two_precisions: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        run_task(task(two_precisions), "fp32", interrupt)
    assert children() == before


def test_a_process_whose_parent_is_gone_ends(two_precisions: Path) -> None:
    orphan = subprocess.Popen(
        [sys.executable, "-m", "edgevqa.evaluation.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert orphan.stdin is not None
    assert orphan.stdout is not None
    orphan.stdin.write(encode_line(task(two_precisions, dataset="scenes:7:4000")))
    orphan.stdin.flush()
    orphan.stdout.readline()
    start = time.perf_counter()
    orphan.stdin.close()
    assert orphan.wait(timeout=60) == 71
    orphan.stdout.close()
    assert time.perf_counter() - start < 30


def test_options_are_checked() -> None:
    for wrong in ({"samples": 0}, {"latency_runs": -1}, {"max_batch": 0}, {"threads": -1}):
        with pytest.raises((ConfigError, msgspec.ValidationError)):
            options(**wrong)


def test_a_busy_machine_is_told() -> None:
    assert busy_warning(0.01) == []
    assert "load 900.0" in busy_warning(900.0)[0]
