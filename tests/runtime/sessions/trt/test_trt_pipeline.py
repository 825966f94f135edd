"""The whole pipeline on the strict simulator answers as ONNX Runtime does: alone, in batches, with beams and choices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.benchmark import measure
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.pipelines.base import Answer
from edgevqa.runtime.sessions.trt.session import EngineSession

QUESTIONS = (
    "what color is the shape?",
    "is there a circle in the image?",
    "does the image contain a red rectangle, or is there none of it here?",
    "what shape is in the image?",
)


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture
def path(engines: Callable[..., Path], reference_bundle: Path) -> Path:
    return engines(reference_bundle)


@pytest.fixture
def pair(simulated: Any, path: Path) -> Iterator[tuple[Pipeline, Pipeline]]:
    """ONNX Runtime, and the simulated TensorRT."""
    with (
        Pipeline.load(path, backend="onnxruntime", threads=1, max_batch=4) as ort,
        Pipeline.load(path, backend="tensorrt", max_batch=4) as trt,
    ):
        yield ort, trt


def same(a: Answer | list[Answer], b: Answer | list[Answer]) -> None:
    for one, other in zip(a if isinstance(a, list) else [a], b if isinstance(b, list) else [b], strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def traffic(pipeline: Pipeline) -> Any:
    session = pipeline.graphs.sessions["language_decoder"]
    assert isinstance(session, EngineSession)
    return session.traffic


def test_answers_are_those_of_onnx_runtime(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    ort, trt = pair
    for _ in range(3):  # launched, captured, replayed
        for scene, question in itertools.product(scenes, QUESTIONS):
            same(ort.answer(scene, question), trt.answer(scene, question))
    assert trt.variant == "fp32"
    assert traffic(trt).replays > traffic(trt).launches


def test_batches(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    ort, trt = pair
    pairs = list(itertools.product(scenes, QUESTIONS))
    for _ in range(3):
        same(ort.answer(scenes[0], list(QUESTIONS)), trt.answer(scenes[0], list(QUESTIONS)))
        same(ort.answer_pairs(pairs), trt.answer_pairs(pairs))
    assert traffic(trt).replays > 0, "the batches came again, and were replayed"


def test_beams_and_choices(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    ort, trt = pair
    for beams in (2, 3):
        for question in QUESTIONS:
            same(ort.answer(scenes[1], question, num_beams=beams), trt.answer(scenes[1], question, num_beams=beams))
    for choices in (["yes", "no"], ["red", "gray", "blue", "green", "brown"]):
        a, b = (each.answer(scenes[2], list(QUESTIONS), choices=choices) for each in pair)
        same(a, b)
        for one, other in zip(a, b, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_streams(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    ort, trt = pair
    streams = [trt.stream(scenes[0], question) for question in QUESTIONS]
    pieces = [list(stream) for stream in reversed(streams)]
    for stream, text, question in zip(streams, reversed(pieces), QUESTIONS, strict=True):
        same(ort.answer(scenes[0], question), stream.answer)
        assert "".join(text) == stream.answer.text


def test_a_second_question_runs_the_trunk_no_more_and_keeps_it_on_the_gpu(
    pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]
) -> None:
    _, trt = pair
    trt.answer(scenes[0], QUESTIONS[0])
    before = traffic(trt).upload_bytes
    trt.answer(scenes[0], QUESTIONS[1])
    assert trt.statistics.image_hits == 1
    assert traffic(trt).upload_bytes - before < 10_000, "words, masks and tokens; no image and no states"


def test_one_copy_to_the_host_a_token_and_only_small_ones_to_the_gpu(
    pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]
) -> None:
    _, trt = pair
    trt.answer(scenes[0], QUESTIONS[0])
    before = traffic(trt).downloads, traffic(trt).uploads, traffic(trt).download_bytes
    found = trt.answer(scenes[0], QUESTIONS[1], max_new_tokens=4)
    steps = len(found.tokens)
    assert traffic(trt).downloads - before[0] == steps
    vocabulary = trt.graphs.sessions["language_decoder"].outputs[0].shape[1]
    assert traffic(trt).download_bytes - before[2] == steps * int(vocabulary) * 4
    # words and mask for the question; words and mask for fusion and language; token and length a step
    assert traffic(trt).uploads - before[1] == 2 + 1 + 2 + steps * 2 + 0


def test_beams_copy_no_keys_through_the_host(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    _, trt = pair
    trt.answer(scenes[0], QUESTIONS[0])
    before = traffic(trt).downloads, traffic(trt).upload_bytes
    trt.answer(scenes[0], QUESTIONS[1], num_beams=3, max_new_tokens=3)
    assert traffic(trt).downloads - before[0] <= 3
    assert traffic(trt).upload_bytes - before[1] < 10_000


def test_threads(pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray]) -> None:
    ort, trt = pair
    work = list(itertools.product(range(3), QUESTIONS)) * 2
    want = {item: ort.answer(scenes[item[0]], item[1]) for item in work}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda item: trt.answer(scenes[item[0]], item[1]), work))
    assert [answer.tokens for answer in found] == [want[item].tokens for item in work]
    same([want[item] for item in work], found)


def test_several_pipelines_at_once(simulated: Any, path: Path, scenes: list[np.ndarray]) -> None:
    def ask(scene: np.ndarray) -> list[tuple[int, ...]]:
        with Pipeline.load(path, backend="tensorrt") as pipeline:
            return [pipeline.answer(scene, question).tokens for question in QUESTIONS * 2]

    want = [ask(scene) for scene in scenes]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, scenes)) == want


@pytest.mark.parametrize("settings", [{"integrated": True}, {"pools": False}])
def test_other_kinds_of_gpu(simulated: Any, path: Path, scenes: list[np.ndarray], settings: dict[str, Any]) -> None:
    simulated.start(**settings)
    with Pipeline.load(path, backend="onnxruntime", threads=1) as ort, Pipeline.load(path, backend="tensorrt") as trt:
        want = [ort.answer(scenes[0], question) for question in QUESTIONS * 2]
        found = [trt.answer(scenes[0], question) for question in QUESTIONS * 2]
    assert [answer.tokens for answer in found] == [answer.tokens for answer in want]
    same(want, found)


def test_tensorrt_rtx_captures_by_itself(
    simulated: Any, engines: Callable[..., Path], reference_bundle: Path, scenes: list[np.ndarray]
) -> None:
    path = engines(reference_bundle, "rtx")
    with (
        Pipeline.load(path, backend="onnxruntime", threads=1) as ort,
        Pipeline.load(path, backend="tensorrt-rtx") as rtx,
    ):
        for question in QUESTIONS * 2:
            same(ort.answer(scenes[0], question), rtx.answer(scenes[0], question))
        assert traffic(rtx).replays == 0


def test_after_warming_up_nothing_is_allocated(
    pair: tuple[Pipeline, Pipeline], scenes: list[np.ndarray], simulated: Any
) -> None:
    _, trt = pair
    for _ in range(4):
        trt.clear_caches()
        for question in QUESTIONS:
            trt.answer(scenes[0], question)
    before = simulated.cuda.calls["cudaMallocAsync"]
    for _ in range(3):
        trt.clear_caches()
        for question in QUESTIONS:
            trt.answer(scenes[0], question)
    assert simulated.cuda.calls["cudaMallocAsync"] == before


def test_graphs_may_have_backends_of_their_own(simulated: Any, path: Path, scenes: list[np.ndarray]) -> None:
    mixed = "tensorrt,projector=onnxruntime,language_decoder=onnxruntime"
    with (
        Pipeline.load(path, backend="onnxruntime", threads=1) as ort,
        Pipeline.load(path, backend=mixed, provider_options={"cuda_graphs": "0"}) as pipeline,
    ):
        kinds = {name: type(session).__name__ for name, session in pipeline.graphs.sessions.items()}
        assert (kinds["projector"], kinds["language_decoder"]) == ("OrtSession", "OrtSession")
        assert set(kinds.values()) == {"OrtSession", "EngineSession"}
        assert pipeline.backend == mixed
        for question in QUESTIONS:
            same(ort.answer(scenes[0], question), pipeline.answer(scenes[0], question))
        same(ort.answer(scenes[0], QUESTIONS[0], num_beams=2), pipeline.answer(scenes[0], QUESTIONS[0], num_beams=2))


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("tensorrt,projector=warp", "expected a backend, and then GRAPH=BACKEND"),
        ("tensorrt,projector", "expected a backend, and then GRAPH=BACKEND"),
        ("onnxruntime,retina=tensorrt", r"names the graph retina; variant 'fp32' has vision_trunk"),
    ],
)
def test_wrong_mixtures_are_refused(simulated: Any, path: Path, backend: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Pipeline.load(path, backend=backend)


def test_more_rows_than_the_engines_take(simulated: Any, path: Path, scenes: list[np.ndarray]) -> None:
    with (
        Pipeline.load(path, backend="tensorrt", max_batch=8) as pipeline,
        pytest.raises(
            InputError, match=r"takes batch of 1 or 1 to 4.*edgevqa build BUNDLE --target server-trt10 --batch"
        ),
    ):
        pipeline.answer(scenes[0], [*QUESTIONS, "is it red?"])


def test_engines_are_run_without_reading_the_graphs(simulated: Any, path: Path, scenes: list[np.ndarray]) -> None:
    """A cold start reads the engines' bytes, not those of the weights that they already hold."""
    weights = Bundle.open(path).weights_path("fp32")
    assert weights is not None
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with Pipeline.load(path, backend="tensorrt") as pipeline:
        assert pipeline.answer(scenes[0], QUESTIONS[0]).text


def test_stages_are_timed_to_the_end_of_their_work(
    simulated: Any, path: Path, scenes: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are not: waiting after every graph would slow them."""
    with Pipeline.load(path, backend="tensorrt") as pipeline:
        pipeline.answer(scenes[0], QUESTIONS[0])
        plain = [traffic(pipeline).downloads]
        answer = pipeline.answer(scenes[1], QUESTIONS[0])
        plain.append(traffic(pipeline).downloads)
        pipeline.clear_caches()
        runs = sum(pipeline.statistics.runs.get(name, 0) for name in pipeline.graphs.sessions)
        with pipeline.graphs.waiting():
            same(pipeline.answer(scenes[1], QUESTIONS[0]), answer)
        runs = sum(pipeline.statistics.runs.get(name, 0) for name in pipeline.graphs.sessions) - runs
        assert traffic(pipeline).downloads - plain[1] == plain[1] - plain[0] + runs
    waited: list[int] = []
    waiting = Graphs.waiting

    def counted(graphs: Graphs) -> Any:
        waited.append(1)
        return waiting(graphs)

    monkeypatch.setattr(Graphs, "waiting", counted)
    report = measure(path, runs=2, warm_up_runs=0, backend="tensorrt")
    assert set(report.stage_ms) >= {"vision_trunk", "language_decoder"}
    assert waited == [1]
    measure(path, runs=1, warm_up_runs=0, backend="onnxruntime")
    assert waited == [1]
