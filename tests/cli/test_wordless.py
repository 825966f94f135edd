"""Commands on models that need no words: classifiers, captioners, and what matches texts to pictures."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.pipeline import Pipeline
from tests.runtime.pipelines.conftest import write_toy
from tests.runtime.pipelines.decoder_only_toy import TEMPLATE, write_decoder_only
from tests.runtime.pipelines.matching_toy import write_matching
from tests.runtime.pipelines.wordless_toys import LABELS, write_captioner, write_classifier

Invoke = Callable[..., tuple[int, str, str]]
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


class Unread(io.StringIO):
    """Standard input that nobody may read."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # typeshed mixes bytes and text here
        raise AssertionError("standard input was read")


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Unread())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (20, 14, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    write_classifier(folder / "classifier")
    write_captioner(folder / "captioner")
    write_decoder_only(folder / "decoder_only", max_context=300)
    write_matching(
        folder / "clip",
        {"image_encoder": {}, "text_encoder": {}},
        MatchingSpec(scale=4.5, bias=-1, activation="softmax"),
    )
    return folder


def test_a_classifier_answers_at_once(invoke: Invoke, toys: Path, picture: Path) -> None:
    code, out, err = invoke("ask", toys / "classifier", picture, "--json")
    answer = json.loads(out)["answers"][0]
    assert (code, err) == (0, "")
    assert sorted(answer["scores"]) == sorted(LABELS)
    assert answer["confidence"] == answer["scores"][answer["answer"]] == max(answer["scores"].values())
    code, out, err = invoke("ask", toys / "classifier", picture)
    assert (code, err) == (0, "")
    assert out.startswith(f"{answer['answer']}  ({answer['answer']} {answer['confidence']:.3f}; ")
    assert out.count(";") == 4, "commas are in the labels"


def test_so_many_labels_as_wanted_are_scored(invoke: Invoke, toys: Path, picture: Path) -> None:
    code, out, _ = invoke("ask", toys / "classifier", picture, "--top-k", 2, "--json")
    assert code == 0
    scores = json.loads(out)["answers"][0]["scores"]
    assert len(scores) == 2
    assert sum(scores.values()) < 1
    code, out, _ = invoke("ask", toys / "classifier", picture, "--choices", "red,blue", "--json")
    assert list(json.loads(out)["answers"][0]["scores"]) == ["red", "blue"]


SHARED = ["crane", "maillot", "crane", "ball", "crane (7)"]
NAMES = ["crane (0)", "maillot", "crane (2)", "ball", "crane (7)"]


def test_classes_of_one_label_are_told_apart_by_their_numbers(invoke: Invoke, tmp_path: Path, picture: Path) -> None:
    bundle = write_classifier(tmp_path / "shared", SHARED)
    plain = json.loads(invoke("ask", write_classifier(tmp_path / "plain"), picture, "--json")[1])["answers"][0]
    answer = json.loads(invoke("ask", bundle, picture, "--json")[1])["answers"][0]
    assert answer["scores"] == {NAMES[LABELS.index(label)]: score for label, score in plain["scores"].items()}
    assert answer["confidence"] == answer["scores"][answer["answer"]]
    choices = json.loads(invoke("ask", bundle, picture, "--choices", "crane (0),crane (2)", "--json")[1])["answers"][0]
    assert set(choices["scores"]) == {"crane (0)", "crane (2)"}
    ratio = answer["scores"]["crane (0)"] / answer["scores"]["crane (2)"]
    assert choices["scores"]["crane (0)"] / choices["scores"]["crane (2)"] == pytest.approx(ratio)
    code, out, err = invoke("ask", bundle, picture, "--choices", "crane,ball")
    assert (code, out) == (2, "")
    assert "'crane' is the label of 2 classes. Give the one that is meant: crane (0), crane (2)." in err


def test_an_unknown_choice_is_told_all_labels_where_they_are_few(invoke: Invoke, toys: Path, picture: Path) -> None:
    code, _, err = invoke("ask", toys / "classifier", picture, "--choices", "dog")
    assert code == 2
    assert "none of the model's 5 labels (red, blue, green, tabby, cat, none)." in err


def test_data_may_name_the_label_that_classes_share(invoke: Invoke, tmp_path: Path, picture: Path) -> None:
    bundle = write_classifier(tmp_path / "shared", ["ball", "dog"] + ["crane"] * 3)
    winner = json.loads(invoke("ask", bundle, picture, "--json")[1])["answers"][0]["answer"]
    label = winner.partition(" (")[0]
    for name, right in ((label, 100), (winner, 100), ("other", 0)):
        folder = tmp_path / name / "data" / name
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(picture.read_bytes())
        told = ("--latency-runs", 0, "--json")
        code, out, _ = invoke("evaluate", bundle, "--data", tmp_path / name / "data", *told)
        assert (code, json.loads(out)["rows"][0]["accuracy"]) == (0, right)


def test_a_question_to_what_takes_no_words_is_told(invoke: Invoke, toys: Path, picture: Path) -> None:
    alone = invoke("ask", toys / "classifier", picture)[1]
    code, out, err = invoke("ask", toys / "classifier", picture, "what is it?")
    assert (code, out) == (0, alone)
    assert "takes no words" in err


@pytest.mark.parametrize("kind", ["captioner", "clip", "decoder_only"])
def test_labels_are_counted_of_classifiers_alone(invoke: Invoke, toys: Path, picture: Path, kind: str) -> None:
    code, out, err = invoke("ask", toys / kind, picture, "what is it", "--top-k", 3)
    assert (code, out) == (2, "")
    assert "--top-k is for models that choose from labels" in err


@pytest.mark.parametrize(("kind", "option"), [("classifier", "--num-beams"), ("clip", "--max-new-tokens")])
def test_options_of_generators_are_for_these(
    invoke: Invoke, toys: Path, picture: Path, kind: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_bundle", None)  # said before anything is measured or loaded
    code, out, err = invoke("ask", toys / kind, picture, "what is it", option, 3)
    assert (code, out) == (2, "")
    assert f"{option} is for models that generate their answers word by word" in err


def test_what_has_no_say_beside_choices_is_told(invoke: Invoke, toys: Path, picture: Path) -> None:
    alone = invoke("ask", toys / "clip", picture, "--choices", "a cat,a dog")
    assert (alone[0], alone[2]) == (0, "")
    code, out, err = invoke("ask", toys / "clip", picture, "a red ball", "--choices", "a cat,a dog")
    assert (code, out) == alone[:2]
    assert "the question has no say" in err
    _, _, err = invoke("ask", toys / "classifier", picture, "--choices", "red,blue", "--top-k", 2)
    assert err == "note: with --choices every one of them is scored: --top-k has no say.\n"
    given = ("--choices", "red,blue", "--num-beams", 2, "--max-new-tokens", 3)
    _, _, err = invoke("ask", toys / "captioner", picture, "the ball", *given)
    assert "--max-new-tokens and --num-beams have no say" in err


def test_the_end_of_a_long_choice_is_told(invoke: Invoke, toys: Path, picture: Path) -> None:
    long = " ".join(["red"] * 500)
    code, _, err = invoke("ask", toys / "clip", picture, "--choices", f"a ball,{long}")
    assert code == 0
    assert err.count("note: the end of a choice of 1,999 characters was cut; the model takes no more.") == 1


def test_features_of_what_answers_are_refused_at_once(
    invoke: Invoke, toys: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_bundle", None)  # said before anything is measured or loaded
    code, out, err = invoke("features", toys / "clip", picture, "-o", picture.with_name("features.npz"))
    assert (code, out) == (2, "")
    assert "gives answers, not features" in err


@pytest.mark.parametrize("kind", ["decoder_only", "clip"])
def test_no_question_at_all_is_told(
    invoke: Invoke, toys: Path, picture: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = invoke("ask", toys / kind, picture)
    assert (code, out) == (2, "")
    assert "No question was given, and none came from standard input." in err
    assert ("--choices" in err) == (kind == "clip")


CUT = "note: the answer was cut after 6 tokens, as many as --max-new-tokens allows.\n"


def test_a_caption_needs_no_prompt_and_may_have_one(invoke: Invoke, toys: Path, picture: Path) -> None:
    code, out, err = invoke("ask", toys / "captioner", picture, "--json")
    assert (code, err) == (0, CUT)
    caption = json.loads(out)["answers"][0]
    assert caption["question"] == ""
    assert caption["answer"]
    code, out, err = invoke("ask", toys / "captioner", picture, "the red ball")
    assert (code, err) == (0, CUT)
    assert out.startswith("the red ball")
    code, out, err = invoke("ask", toys / "captioner", picture, "--stream")
    assert (code, err) == (0, CUT)
    assert out.startswith(caption["answer"])


def test_several_pictures_are_asked_about_where_the_model_takes_them(
    invoke: Invoke, toys: Path, picture: Path, tmp_path: Path
) -> None:
    code, out, err = invoke("ask", toys / "decoder_only", picture, "--image", picture, "what is it")
    assert (code, out) == (2, "")
    assert "about 2 pictures was asked; the bundle's model takes one" in err
    bundle = Bundle.open(write_decoder_only(tmp_path / "several"))
    assert bundle.manifest.image is not None
    image = msgspec.structs.replace(bundle.manifest.image, separator=[2])
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, image=image))
    one = json.loads(invoke("ask", bundle.root, picture, "what is it", "--json")[1])["answers"][0]
    code, out, err = invoke("ask", bundle.root, picture, "--image", picture, "what is it", "--json")
    assert (code, err) == (0, CUT)
    assert json.loads(out)["answers"][0]["log_probability"] != one["log_probability"]


def test_choices_need_no_question_where_texts_are_matched(invoke: Invoke, toys: Path, picture: Path) -> None:
    code, out, err = invoke("ask", toys / "clip", picture, "--choices", "red ball,two dogs", "--json")
    assert (code, err) == (0, "")
    assert list(json.loads(out)["answers"][0]["scores"]) == ["red ball", "two dogs"]


def test_where_texts_are_matched_a_text_is_read(
    invoke: Invoke, toys: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a red ball\n"))
    code, out, err = invoke("ask", toys / "clip", picture)
    assert (code, err, len(out.splitlines())) == (0, "", 1)


def test_inspect_tells_what_each_kind_of_model_has(invoke: Invoke, toys: Path) -> None:
    code, out, _ = invoke("inspect", toys / "classifier")
    assert code == 0
    assert "labels       5: red, blue, green, tabby, cat, none" in out
    assert "question" not in out.partition("variant")[0]
    assert "may be left out" in invoke("inspect", toys / "captioner")[1]
    told = invoke("inspect", toys / "decoder_only")[1]
    assert f"template     {TEMPLATE!r}" in told
    assert "at most 4 tokens of a prompt" in told
    assert "prompt and answer at most 300" in told
    assert "softmax(4.5 x cosine -1)" in invoke("inspect", toys / "clip")[1]


def test_bench_counts_tokens_where_some_are_generated(invoke: Invoke, toys: Path) -> None:
    code, out, _ = invoke("bench", toys / "classifier", "--runs", 2, "--warm-up", 1)
    assert code == 0
    assert "tokens generated" not in out
    assert json.loads(invoke("bench", toys / "classifier", "--runs", 1, "--json")[1])["tokens"] == {
        "first": 0,
        "next": 0,
    }
    code, out, _ = invoke("bench", toys / "decoder_only", "--runs", 2)
    assert code == 0
    assert "tokens generated" in out
    assert "prefill" in out
    assert "language_decoder (a token)" in out


@pytest.fixture
def pictures_by_label(tmp_path: Path) -> Path:
    """A folder for each label, as classification data is kept."""
    random = np.random.default_rng(0)
    for label, color in COLORS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((16, 16, 3), color) * random.uniform(0.4, 1, (16, 16, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path / "data"


def test_pictures_in_folders_of_their_labels_are_data(invoke: Invoke, toys: Path, pictures_by_label: Path) -> None:
    code, out, err = invoke("evaluate", toys / "classifier", "--data", pictures_by_label, "--latency-runs", 0, "--json")
    assert code == 0
    row = json.loads(out)["rows"][0]
    assert (row["n"], row["scored"]) == (12, 12)
    assert 0 <= row["accuracy"] <= 100
    assert "labels" not in err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a place that takes no files")
@pytest.mark.parametrize("place", ["/proc/answers.jsonl", "/proc/x/answers.jsonl"])
def test_where_answers_cannot_be_written_is_said_before_they_are_asked(
    invoke: Invoke, toys: Path, pictures_by_label: Path, place: str
) -> None:
    code, out, err = invoke("evaluate", toys / "classifier", "--data", pictures_by_label, "-o", place)
    assert (code, out) == (2, "")
    assert err.startswith("error: /proc/")
    assert err.endswith("Give an output that you may write to.\n")


def test_figures_are_told_also_where_the_answers_cannot_be_written(
    invoke: Invoke, toys: Path, pictures_by_label: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    monkeypatch.setattr(Path, "write_bytes", full)
    told = ("-o", tmp_path / "answers.jsonl", "--latency-runs", 0, "--json")
    code, out, err = invoke("evaluate", toys / "classifier", "--data", pictures_by_label, *told)
    assert code == 3
    assert json.loads(out)["rows"][0]["scored"] == 12
    assert "The disk became full" in err


def test_pictures_of_labels_are_told_apart_by_what_matches_texts(
    invoke: Invoke, toys: Path, pictures_by_label: Path, tmp_path: Path
) -> None:
    """Zero-shot classification: every label is a choice."""
    told = ("--output", tmp_path / "answers.jsonl", "--json")
    code, out, _ = invoke("evaluate", toys / "clip", "--data", pictures_by_label, "--latency-runs", 1, *told)
    assert code == 0
    assert json.loads(out)["rows"][0]["scored"] == 12
    answers = [json.loads(line)["prediction"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert set(answers) <= set(COLORS)
    assert len(answers) == 12


def test_answers_that_are_no_labels_are_told(invoke: Invoke, toys: Path) -> None:
    code, _, err = invoke("evaluate", toys / "classifier", "--data", "scenes:3:40", "--latency-runs", 0)
    assert code == 0
    assert "among the model's 5 labels (such as 'red', 'blue', 'green')" in err


def test_the_decoders_two_stages_are_told_apart(invoke: Invoke, toys: Path, pictures_by_label: Path) -> None:
    (pictures_by_label / "questions.txt").write_text("what color is the ball\nis it red\n")
    options = ("--data", pictures_by_label, "--samples", 6, "--latency-runs", 3, "--json")
    code, out, _ = invoke(
        "compare", toys / "decoder_only", *options, "--fail-if", "fp32.per_graph_ms.prefill.p50 > 10000"
    )
    assert code == 0
    told = json.loads(out)["rows"][0]["per_graph_ms"]
    assert list(told) == ["prefill", "vision", "language_decoder"]
    assert told["prefill"]["p50"] > 0


def test_a_model_that_needs_words_says_so_of_pictures_alone(
    invoke: Invoke, tmp_path: Path, pictures_by_label: Path
) -> None:
    bundle = write_toy(tmp_path / "toy")
    for command in ("evaluate", "compare"):
        code, _, err = invoke(command, bundle, "--data", pictures_by_label, "--latency-runs", 0)
        assert code == 2
        assert "has 12 pictures without a question, which this model (toy) needs" in err
        assert "questions.txt" in err
