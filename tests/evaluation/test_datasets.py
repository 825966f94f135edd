"""Data sets by spec: official order and counts, reproducible samples, lazy pictures, errors that say what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import ImageError, InputError, MissingExtraError


def make_folder(folder: Path, name: str, text: str) -> Path:
    Image.new("RGBA", (5, 4), (255, 0, 0, 255)).save(folder / "red.png")
    Image.new("L", (3, 3), 7).save(folder / "dark.png")
    (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("split", "questions", "images"), [("train", 38_575, 4000), ("test", 9_673, 1000)])
def test_easy_vqa_has_its_official_questions(split: str, questions: int, images: int) -> None:
    pytest.importorskip("easy_vqa")
    dataset = open_dataset(f"easy-vqa:{split}")
    samples = list(dataset)
    assert len(dataset) == len(samples) == questions
    assert len({sample.image_id for sample in samples}) == images
    assert [sample.question_id for sample in samples] == [str(i) for i in range(questions)]
    assert {sample.question_type for sample in samples} == {"yes/no", "color", "shape"}
    assert all(sample.answers != [""] and len(sample.answers) == 1 for sample in samples)


def test_easy_vqa_starts_with_its_first_question() -> None:
    pytest.importorskip("easy_vqa")
    sample = open_dataset("easy-vqa:train")[0]
    assert (sample.question, sample.answers, sample.question_type) == (
        "what is the blue shape?",
        ["rectangle"],
        "shape",
    )
    assert sample.image.mode == "RGB"
    assert sample.image.size == (64, 64)
    assert (0, 0, 255) in {color for _, color in sample.image.getcolors() or []}


def test_easy_vqa_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgevqa\[data\]'"):
        open_dataset("easy-vqa:test")


def test_scenes_are_reproducible_one_by_one() -> None:
    dataset = open_dataset("scenes:5:40")
    first = [(s.question, s.answers, s.question_type, s.image.tobytes()) for s in dataset]
    again = [(s.question, s.answers, s.question_type, s.image.tobytes()) for s in dataset]
    assert len(dataset) == 40
    assert first == again
    longer, alone = open_dataset("scenes:5:4000")[33], open_dataset("scenes:5:34")[33]
    for sample in (longer, alone):
        assert (sample.question, sample.answers, sample.question_type, sample.image.tobytes()) == first[33]
    assert [s.question for s in open_dataset("scenes:6:40")] != [row[0] for row in first]


def test_scene_questions_share_their_picture() -> None:
    samples = list(open_dataset("scenes:5:8"))
    assert [sample.image_id for sample in samples] == ["0"] * 4 + ["1"] * 4
    with pytest.raises(IndexError):
        open_dataset("scenes:5:8")[8]


@pytest.mark.parametrize(
    "spec", ["scenes:5", "scenes:a:3", "scenes:5:0", "scenes:-1:5", "scenes:", "easy-vqa:validation"]
)
def test_a_wrong_spec_says_the_right_form(spec: str) -> None:
    with pytest.raises(InputError, match=r"scenes:SEED:N|easy-vqa:test"):
        open_dataset(spec)


def test_an_unknown_spec_lists_the_known_forms() -> None:
    with pytest.raises(InputError) as caught:
        open_dataset("vqa9:val")
    for form in ("vqa9:val", "easy-vqa:train|test", "scenes:SEED:N", "questions.csv"):
        assert form in str(caught.value)


def test_a_folder_with_csv(tmp_path: Path) -> None:
    table = 'image,question,answer,type\nred.png,"what color, please?",red,color\ndark.png,is it dark?,yes,yes/no\n'
    dataset = open_dataset(str(make_folder(tmp_path, "questions.csv", table)))
    samples = list(dataset)
    assert [s.question for s in samples] == ["what color, please?", "is it dark?"] == [s.question for s in dataset]
    assert [s.answers for s in samples] == [["red"], ["yes"]]
    assert [s.question_type for s in samples] == ["color", "yes/no"]
    assert samples[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert samples[1].image.mode == "RGB"


def test_a_folder_with_jsonl_and_several_answers(tmp_path: Path) -> None:
    rows = [
        {"image": "red.png", "question": "q?", "answer": ["red", "crimson"]},
        {"image": "dark.png", "question": "é?", "answer": "1"},
    ]
    dataset = open_dataset(str(make_folder(tmp_path, "questions.jsonl", "\n".join(map(json.dumps, rows)))))
    assert [sample.answers for sample in dataset] == [["red", "crimson"], ["1"]]
    assert dataset[1].question == "é?"
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("questions.csv", "image,question\nred.png,q\n", "lacks the columns answer"),
        ("questions.csv", "image,question,answer\n", "holds no question"),
        ("questions.csv", "image,question,answer\nred.png,q\n", "line 2"),
        ("questions.csv", "image,question,answer\nnone.png,q,a\n", "question 1: the picture 'none.png'"),
        ("questions.csv", "image,question,answer\n../out.png,q,a\n", "not a file inside"),
        ("questions.jsonl", '{"image": "red.png", "question": "q"}\n', "line 1.*answer"),
        ("questions.jsonl", "\n[1]\n", "line 2"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "out.png")
    with pytest.raises(InputError, match=message):
        open_dataset(str(make_folder(inside, name, text)))


def test_a_folder_with_neither_table_nor_pictures_says_why(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(InputError, match=r"has no questions\.csv or questions\.jsonl.*questions\.txt"):
        open_dataset(str(tmp_path))


def test_pictures_are_opened_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    make_folder(tmp_path, "questions.csv", "image,question,answer\nbroken.png,q,a\n")
    samples = list(open_dataset(str(tmp_path)))
    with pytest.raises(ImageError, match=r"broken\.png"):
        _ = samples[0].image
