"""`edgevqa ask`, `edgevqa graph run` and `edgevqa bench` on the toy model."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_SPEC = importlib.util.spec_from_file_location(
    "toy_model", Path(__file__).parents[1] / "runtime" / "pipelines" / "conftest.py"
)
if _SPEC is None or _SPEC.loader is None:
    raise ImportError("tests/runtime/pipelines/conftest.py is missing")
_TOY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOY)

toy_bundle = _TOY.toy_bundle
Invoke = Callable[..., tuple[int, str, str]]
QUESTION = "what color is the ball?"
CUT = "note: the answer was cut after 6 tokens, as many as --max-new-tokens allows.\n"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (20, 14, 3), dtype=np.uint8)).save(path)
    return path


def test_one_question(invoke: Invoke, toy_bundle: Path, picture: Path) -> None:
    code, out, err = invoke("ask", toy_bundle, picture, QUESTION)
    assert (code, err) == (0, CUT)
    answer, _, confidence = out.strip().partition("  (confidence ")
    assert answer
    assert 0 < float(confidence.rstrip(")")) <= 1


def test_json_is_alone_on_standard_output(invoke: Invoke, toy_bundle: Path, picture: Path) -> None:
    code, out, err = invoke("ask", toy_bundle, picture, QUESTION, "is it red? " * 40, "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document) == {"answers", "timing_ms"}
    assert [answer["question"] for answer in document["answers"]] == [QUESTION, "is it red? " * 40]
    first, second = document["answers"]
    assert {"question", "answer", "confidence", "log_probability", "scores", "tokens", "timing_ms"} <= set(first)
    assert 0 < first["confidence"] <= 1
    assert (first["truncated_question"], second["truncated_question"]) == (False, True)
    assert first["truncated_answer"]
    assert "was cut" in err
    timing = document["timing_ms"]
    assert {"load_image", "load_bundle", "vision_trunk", "language_decoder", "total"} <= set(timing)
    assert timing["total"] >= timing["load_bundle"] + timing["language_decoder"]


def test_streaming_writes_the_same_answer(invoke: Invoke, toy_bundle: Path, picture: Path) -> None:
    plain = invoke("ask", toy_bundle, picture, QUESTION, "how many dogs?")[1].splitlines()
    streamed = invoke("ask", toy_bundle, picture, QUESTION, "how many dogs?", "--stream")[1].splitlines()
    assert plain == streamed
    assert streamed[0].startswith(f"{QUESTION}: ")
    assert not invoke("ask", toy_bundle, picture, QUESTION, "--stream")[1].startswith(QUESTION)


def test_choices_and_their_scores(invoke: Invoke, toy_bundle: Path, picture: Path) -> None:
    code, out, _ = invoke("ask", toy_bundle, picture, QUESTION, "--choices", "yes, no", "--json")
    answer = json.loads(out)["answers"][0]
    assert code == 0
    assert list(answer["scores"]) == ["yes", "no"]
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert answer["answer"] in ("yes", "no")
    text = invoke("ask", toy_bundle, picture, QUESTION, "--choices", "yes,no")[1]
    assert text.startswith(f"{answer['answer']}  (yes 0.")


def test_beams_tokens_and_timing(invoke: Invoke, toy_bundle: Path, picture: Path) -> None:
    code, out, _ = invoke("ask", toy_bundle, picture, QUESTION, "--num-beams", 3, "--max-new-tokens", 2, "--timing")
    assert code == 0
    for stage in ("load_bundle", "vision_trunk", "language_decoder", "total"):
        assert stage in out
    code, out, _ = invoke("ask", toy_bundle, picture, QUESTION, "--max-new-tokens", 1, "--json")
    assert len(json.loads(out)["answers"][0]["tokens"]) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_questions_from_standard_input(
    invoke: Invoke, toy_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\nhow many dogs?\n\nis this read?\n"))
    code, out, err = invoke("ask", toy_bundle, picture)
    assert (code, err, len(out.splitlines())) == (0, CUT * 2, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    code, out, _ = invoke("ask", toy_bundle, picture, "--json")
    assert [answer["question"] for answer in json.loads(out)["answers"]] == [QUESTION]


def test_a_wrong_question_on_standard_input_leaves_the_others_in_the_json(
    invoke: Invoke, toy_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n...\nhow many dogs?\n"))
    code, out, err = invoke("ask", toy_bundle, picture, "--json")
    first, second, third = json.loads(out)["answers"]
    assert code == 2
    assert (first["question"], third["question"]) == (QUESTION, "how many dogs?")
    assert set(second) == {"question", "error"}
    assert (second["question"], "is empty" in second["error"], "is empty" in err) == ("...", True, True)


def test_at_a_terminal_there_is_a_prompt_and_a_wrong_question_is_no_end(
    invoke: Invoke, toy_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{QUESTION}\n...\nhow many dogs?\n"))
    code, out, err = invoke("ask", toy_bundle, picture)
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.count("question> ") == 4
    assert "is empty" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("BUNDLE", "absent.png", "what?"), 2, "does not exist"),
        (("absent", "PICTURE", "what?"), 2, "absent"),
        (("BUNDLE", "PICTURE", "..."), 2, "is empty"),
        (("BUNDLE", "PICTURE", "你好"), 2, "vocabulary"),
        (("BUNDLE", "PICTURE", "red", "--precision", "int8"), 2, "no variant 'int8'"),
        (("BUNDLE", "PICTURE", "red", "--backend", "warp"), 2, "expected auto, onnxruntime"),
        (("BUNDLE", "PICTURE", "red", "--max-new-tokens", "0"), 2, "max_new_tokens"),
        (("BUNDLE", "PICTURE", "red", "--choices", "yes,,no"), 2, "none empty"),
        (("BUNDLE", "PICTURE", "red", "--stream", "--json"), 2, "give one of them"),
    ],
)
def test_what_goes_wrong(
    invoke: Invoke, toy_bundle: Path, picture: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    places: dict[str, object] = {"BUNDLE": toy_bundle, "PICTURE": picture}
    found, out, err = invoke("ask", *(places.get(argument, argument) for argument in arguments))
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_graph_run(invoke: Invoke, toy_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", pixel_values=np.zeros((1, 3, 8, 8)))
    files = ("--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    code, out, _ = invoke("graph", "run", toy_bundle, "vision_trunk", *files, "--json")
    assert code == 0
    shape = {"name": "trunk_states", "dtype": "float32", "shape": [1, 4, 6]}
    assert json.loads(out)["outputs"] == [shape]
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["trunk_states"], np.zeros((1, 4, 6), np.float32))
    code, out, _ = invoke("graph", "run", toy_bundle, "vision_trunk", *files)
    assert code == 0
    assert "1 x 4 x 6" in out


def test_graph_run_with_a_wrong_name_writes_nothing(invoke: Invoke, toy_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", pixels=np.zeros(1))
    files = ("--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    code, out, err = invoke("graph", "run", toy_bundle, "vision_trunk", *files)
    assert (code, out) == (2, "")
    assert "pixel_values" in err
    assert not (tmp_path / "out.npz").exists()


def test_graph_run_does_not_overwrite_its_inputs(invoke: Invoke, toy_bundle: Path, tmp_path: Path) -> None:
    given, link = tmp_path / "in.npz", tmp_path / "link.npz"
    np.savez(given, pixel_values=np.zeros((1, 3, 8, 8)))
    link.symlink_to(given)
    before = given.read_bytes()
    for outputs, message in (
        (given, "both inputs and outputs"),
        (link, "both"),
        (given / "o.npz", "cannot be written"),
    ):
        files = ("--inputs", given, "--outputs", outputs)
        code, out, err = invoke("graph", "run", toy_bundle, "vision_trunk", *files)
        assert (code, out) == (2, "")
        assert message in err
    assert given.read_bytes() == before


def test_bench(invoke: Invoke, toy_bundle: Path) -> None:
    code, out, _ = invoke("bench", toy_bundle, "--runs", 2, "--warm-up", 1, "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document["latency_ms"]) == {"first", "next"}
    assert {"p50", "p90", "p99"} <= set(document["stage_ms"]["vision_trunk"])
    code, out, _ = invoke("bench", toy_bundle, "--runs", 1)
    assert code == 0
    for part in ("first answer", "next answer", "language_decoder (a token)", "fp32 on onnxruntime"):
        assert part in out
