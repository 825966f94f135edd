"""Annotation files of VQA v2, TextVQA and VizWiz in their true form, with small pictures where their archives put them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.metrics import score
from edgevqa.runtime.errors import ImageError, InputError

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def picture(path: Path, color: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def vqa_questions(split: str = "val2014") -> dict[str, Any]:
    return {
        "info": {"description": "", "url": "", "version": "2.0", "year": 2017, "contributor": "", "date_created": ""},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "", "name": ""},
        "data_subtype": split,
        "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "How many people are there?", "question_id": 262148001},
            {"image_id": 42, "question": "Is it a dog?", "question_id": 42000},
        ],
    }


def vqa_annotations(split: str = "val2014") -> dict[str, Any]:
    def annotation(question: int, kind: str, answers: list[str]) -> dict[str, Any]:
        return {
            "question_type": "none of the above",
            "multiple_choice_answer": answers[0],
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": place}
                for place, text in enumerate(answers, start=1)
            ],
            "image_id": question // 1000,
            "answer_type": kind,
            "question_id": question,
        }

    return {
        "info": {"version": "2.0"},
        "data_type": "mscoco",
        "data_subtype": split,
        "license": {},
        "annotations": [  # in another order than the questions, and one question more
            annotation(42000, "yes/no", ["yes"] * 10),
            annotation(7000, "other", ["cat"] * 10),
            annotation(262148000, "other", ["down"] * 7 + ["at table"] * 3),
            annotation(262148001, "number", ["2"] * 10),
        ],
    }


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """VQA v2 with both files and the pictures' folder side by side."""
    write(tmp_path / QUESTIONS, vqa_questions())
    write(tmp_path / ANNOTATIONS, vqa_annotations())
    picture(tmp_path / "val2014" / "COCO_val2014_000000262148.jpg")
    picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg", (0, 0, 255))
    return tmp_path


def check_vqa(spec: str) -> None:
    dataset = open_dataset(spec)
    samples = list(dataset)
    assert dataset.spec == spec
    assert len(dataset) == 3
    assert [s.question for s in samples] == ["Where is he looking?", "How many people are there?", "Is it a dog?"]
    assert [s.answers for s in samples] == [["down"] * 7 + ["at table"] * 3, ["2"] * 10, ["yes"] * 10]
    assert [s.question_type for s in samples] == ["other", "number", "yes/no"]
    assert [s.image_id for s in samples] == ["262148", "262148", "42"]
    assert [s.question_id for s in samples] == ["262148000", "262148001", "42000"]
    red, blue = samples[0].image.getpixel((0, 0)), samples[2].image.getpixel((0, 0))
    assert isinstance(red, tuple)
    assert isinstance(blue, tuple)
    assert red[0] > 200 > red[2]
    assert blue[2] > 200 > blue[0]
    assert score(samples, ["at table", "2", "no"]).accuracy == pytest.approx(100 * (0.9 + 1 + 0) / 3)


@pytest.mark.parametrize(
    "given",
    [QUESTIONS, ANNOTATIONS, f"{QUESTIONS},{ANNOTATIONS}", f"{ANNOTATIONS},{QUESTIONS}", f"{QUESTIONS}::val2014"],
)
def test_vqa_v2_from_either_file(vqa: Path, given: str) -> None:
    check_vqa(",".join(str(vqa / name) for name in given.split(",")))


def test_vqa_v2_in_the_official_tree(vqa: Path) -> None:
    for folder, name in (("Questions", QUESTIONS), ("Annotations", ANNOTATIONS), ("Images/mscoco", "val2014")):
        (vqa / folder).mkdir(parents=True)
        shutil.move(vqa / name, vqa / folder / name)
    check_vqa(str(vqa / "Questions" / QUESTIONS))
    check_vqa(str(vqa / "Annotations" / ANNOTATIONS))


def test_vqa_v2_with_names_of_ones_own_and_pictures_elsewhere(vqa: Path) -> None:
    (vqa / QUESTIONS).rename(vqa / "asked, all.json")
    (vqa / ANNOTATIONS).rename(vqa / "told.json")
    shutil.move(vqa / "val2014", vqa / "far" / "away")
    with pytest.raises(InputError, match=r"told\.json is one of the two files.*the one with the questions.*comma"):
        open_dataset(str(vqa / "told.json"))
    (vqa / "asked, all.json").rename(vqa / "asked.json")
    check_vqa(f"{vqa / 'asked.json'},{vqa / 'told.json'}::{vqa / 'far' / 'away'}")
    check_vqa(f"{vqa / 'asked.json'},{vqa / 'told.json'}::far/away")  # beside the file


def test_files_are_found_from_inside_their_folder(vqa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (vqa / "Annotations").mkdir()
    shutil.move(vqa / ANNOTATIONS, vqa / "Annotations" / ANNOTATIONS)
    monkeypatch.chdir(vqa / "Annotations")
    with pytest.raises(InputError, match=str(vqa / "Questions")):
        open_dataset(ANNOTATIONS)
    (vqa / "Questions").mkdir()
    shutil.move(vqa / QUESTIONS, vqa / "Questions" / QUESTIONS)
    check_vqa(ANNOTATIONS)


def test_the_test_split_has_no_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", vqa_questions("test-dev2015"))
    for name in ("000000262148", "000000000042"):
        picture(tmp_path / "test2015" / f"COCO_test2015_{name}.jpg")
    samples = list(open_dataset(str(path)))
    assert [s.answers for s in samples] == [[], [], []]
    with pytest.raises(InputError, match="3 of 3 questions have no answers"):
        score(samples, ["a"] * 3)


def test_a_missing_sibling_says_what_was_looked_for(vqa: Path) -> None:
    (vqa / ANNOTATIONS).unlink()
    with pytest.raises(InputError) as caught:
        open_dataset(str(vqa / QUESTIONS))
    for part in (
        str(vqa / ANNOTATIONS),
        str(vqa.parent / "Annotations" / ANNOTATIONS),
        "QUESTIONS.json,ANNOTATIONS.json",
    ):
        assert part in str(caught.value)


def test_missing_pictures_are_named_and_counted(vqa: Path) -> None:
    (vqa / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(InputError) as caught:
        open_dataset(str(vqa / QUESTIONS))
    for part in ("1 of the 2 pictures", "COCO_val2014_000000000042.jpg", str(vqa / "val2014"), "::IMAGES_DIR"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="folder of pictures 'nowhere' does not exist"):
        open_dataset(f"{vqa / QUESTIONS}::nowhere")


def text_vqa() -> dict[str, Any]:
    def row(number: int, image: str, answers: list[str]) -> dict[str, Any]:
        return {
            "question": f"what does sign {number} say?",
            "image_id": image,
            "image_classes": ["Traffic sign"],
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "image_width": 1024,
            "image_height": 664,
            "answers": answers,
            "question_tokens": ["what"],
            "question_id": number,
            "set_name": "val",
        }

    rows = [row(34602, "003a8ae2ef43b901", ["stop"] * 9 + ["halt"]), row(34603, "0123456789012345", ["nokia"] * 10)]
    return {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}


@pytest.mark.parametrize("folder", ["train_images", "images", "train_val_images/train_images", "../train_images"])
def test_text_vqa(tmp_path: Path, folder: str) -> None:
    path = write(tmp_path / "text" / "TextVQA_0.5.1_val.json", text_vqa())
    for name in ("003a8ae2ef43b901", "0123456789012345"):
        picture(path.parent / folder / f"{name}.jpg")
    samples = list(open_dataset(str(path)))
    assert [s.answers for s in samples] == [["stop"] * 9 + ["halt"], ["nokia"] * 10]
    assert [s.image_id for s in samples] == ["003a8ae2ef43b901", "0123456789012345"]
    assert [s.question_id for s in samples] == ["34602", "34603"]
    assert {s.question_type for s in samples} == {"all"}
    assert samples[1].image.size == (6, 4)


def test_text_vqas_test_set_has_no_answers(tmp_path: Path) -> None:
    content = text_vqa()
    for row in content["data"]:
        del row["answers"]
        row["set_name"] = "test"
        picture(tmp_path / "test_images" / f"{row['image_id']}.jpg")
    samples = list(open_dataset(str(write(tmp_path / "TextVQA_0.5.1_test.json", content))))
    assert [s.answers for s in samples] == [[], []]


def viz_wiz() -> list[dict[str, Any]]:
    answers = [
        {"answer": "unanswerable", "answer_confidence": "yes"},
        {"answer": "chair", "answer_confidence": "no"},
    ] * 5
    return [
        {
            "answerable": 0,
            "image": "VizWiz_val_00028000.jpg",
            "question": "What is this?",
            "answer_type": "unanswerable",
            "answers": answers,
        },
        {"image": "VizWiz_val_00028001.jpg", "question": "What colour?"},  # the test set has no more than this
    ]


@pytest.mark.parametrize(("file", "folder"), [("Annotations/val.json", "val"), ("val.json", "."), ("a.json", "val")])
def test_viz_wiz(tmp_path: Path, file: str, folder: str) -> None:
    path = write(tmp_path / file, viz_wiz())
    for number in (28000, 28001):
        picture(tmp_path / folder / f"VizWiz_val_000{number}.jpg")
    samples = list(open_dataset(str(path)))
    assert samples[0].answers == ["unanswerable", "chair"] * 5
    assert samples[1].answers == []
    assert [s.question_type for s in samples] == ["unanswerable", "all"]
    assert [s.image_id for s in samples] == ["VizWiz_val_00028000.jpg", "VizWiz_val_00028001.jpg"]
    assert score(samples[:1], ["Unanswerable"]).accuracy == 100.0


def test_annotations_cannot_name_pictures_outside_their_folders(tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    path = write(tmp_path / "in" / "val.json", [{"image": "../secret.jpg", "question": "What is this?"}])
    with pytest.raises(InputError, match=r"1 of the 1 pictures.*\.\./secret\.jpg"):
        open_dataset(str(path))


def broken(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    content = vqa_annotations()
    change(content["annotations"])
    return content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json is not JSON"),
        ("a.csv", "image,question\n", r"a\.csv is not JSON.*give its folder"),
        ("a.json", "", "is not JSON"),
        ("a.json", '"text"', "no annotation file"),
        ("a.json", "{}", "no annotation file that edgevqa knows.*VQA v2.*TextVQA.*VizWiz"),
        ("a.json", "[]", "holds no question"),
        ("a.json", '{"data": []}', "holds no question"),
        ("a.json", '{"data_subtype": "test2015", "questions": []}', "holds no question"),
        ("a.json", '[{"image": "a.jpg"}]', r"missing required field `question`.*\[0\]"),
        ("a.json", '{"data": [{"question": "q", "question_id": 1}]}', "image_id.*in 'data'"),
        ("a.json", '{"data_subtype": "test2015", "questions": [{"question": 3}]}', "in 'questions'"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        open_dataset(str(tmp_path / name))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (vqa_questions(), "are not the two files of VQA v2"),
        (text_vqa(), "are not the two files of VQA v2"),
        (broken(lambda rows: rows.pop(0)), "no answers for 1 of 3 questions, the first is question 42000"),
        (broken(lambda rows: rows[0].pop("answers")), "answers.*in 'annotations'"),
    ],
)
def test_two_files_that_do_not_belong_together(vqa: Path, second: object, message: str) -> None:
    write(vqa / ANNOTATIONS, second)
    with pytest.raises(InputError, match=message):
        open_dataset(f"{vqa / QUESTIONS},{vqa / ANNOTATIONS}")


def test_a_second_file_that_is_not_there(vqa: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        open_dataset(f"{vqa / QUESTIONS},{vqa / 'none.json'}")
    with pytest.raises(InputError, match="names 3 files"):
        open_dataset(f"{vqa / QUESTIONS},{vqa / ANNOTATIONS},{vqa / QUESTIONS}")
    with pytest.raises(InputError, match="unknown and no such file or folder"):
        open_dataset(str(vqa / "none.json"))


def test_pictures_are_opened_when_asked_for(vqa: Path) -> None:
    (vqa / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"not a picture")
    samples = list(open_dataset(str(vqa / QUESTIONS)))
    with pytest.raises(ImageError, match="000000000042"):
        _ = samples[2].image
