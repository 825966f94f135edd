"""Pictures alone with typical questions, and the hashes by which samples and sets are known again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgevqa.evaluation.datasets.base import Sample, dataset_hash, sample_key
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.evaluation.metrics import agreement, score
from edgevqa.runtime.errors import InputError


def make(folder: Path, questions: str) -> Path:
    for name, color in (("b.png", "red"), ("a/c.JPG", "blue"), (".hidden.png", "green"), (".cache/d.png", "green")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), color).save(folder / name)
    (folder / "notes.md").write_text("no picture")
    (folder / "questions.txt").write_text(questions, encoding="utf-8")
    return folder


def test_every_picture_is_asked_every_question(tmp_path: Path) -> None:
    dataset = open_dataset(str(make(tmp_path, "\ufeffis it red?\n\n  what colour is é? \nis it red?\n")))
    samples = list(dataset)
    assert len(dataset) == len(samples) == 4
    assert [(s.image_id, s.question) for s in samples] == [
        ("a/c.JPG", "is it red?"),
        ("a/c.JPG", "what colour is é?"),
        ("b.png", "is it red?"),
        ("b.png", "what colour is é?"),
    ]
    assert all(s.answers == [] and s.question_type == "all" for s in samples)
    assert len({s.question_id for s in samples}) == 4
    assert samples[2].image.getpixel((0, 0)) == (255, 0, 0)
    assert dataset[-1].question_id == samples[3].question_id
    with pytest.raises(IndexError):
        _ = dataset[4]
    with pytest.raises(InputError, match="4 of 4 questions have no answers"):
        score(samples, ["yes"] * 4)
    assert agreement(["yes"] * 4, ["yes"] * 3 + ["no"]).percent == 75.0


def test_a_table_wins_over_questions_alone(tmp_path: Path) -> None:
    make(tmp_path, "is it red?\n")
    (tmp_path / "questions.csv").write_text("image,question,answer\nb.png,is it red?,yes\n")
    assert [sample.answers for sample in open_dataset(str(tmp_path))] == [["yes"]]


def test_a_table_may_leave_answers_empty(tmp_path: Path) -> None:
    make(tmp_path, "")
    (tmp_path / "questions.csv").write_text("image,question,answer\nb.png,is it red?,\nb.png,is it blue?,no\n")
    assert [sample.answers for sample in open_dataset(str(tmp_path))] == [[], ["no"]]


@pytest.mark.parametrize(("questions", "message"), [(b"\n \n", "holds no question"), (b"\xff\xfe?", "UTF-8")])
def test_questions_that_cannot_be_used(tmp_path: Path, questions: bytes, message: str) -> None:
    make(tmp_path, "")
    (tmp_path / "questions.txt").write_bytes(questions)
    with pytest.raises(InputError, match=rf"questions\.txt.*{message}"):
        open_dataset(str(tmp_path))


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("is it red?\n")
    with pytest.raises(InputError, match="no picture"):
        open_dataset(str(tmp_path))


def solid(color: str, *, question: str = "q", answers: tuple[str, ...] = ("a",), image_id: str = "0") -> Sample:
    picture: Callable[[], Image.Image] = lambda: Image.new("RGB", (4, 4), color)  # noqa: E731
    return Sample(
        question=question,
        answers=list(answers),
        question_type="all",
        image_id=image_id,
        question_id="0",
        open_image=picture,
    )


def test_sample_key_is_of_question_and_pixels_alone() -> None:
    key = sample_key(solid("red"))
    assert len(key) == 32
    assert key == sample_key(solid("red", answers=("b",), image_id="other"))
    assert key != sample_key(solid("blue"))
    assert key != sample_key(solid("red", question="r"))
    turned = replace(solid("red"), open_image=lambda: Image.new("RGB", (2, 8), "red"))
    assert key != sample_key(turned)  # as many red pixels in another shape


def test_dataset_hash_sees_every_change() -> None:
    samples = [solid("red"), solid("blue", image_id="1", answers=("a", "b"))]
    whole = dataset_hash(samples)
    assert len(whole) == 64
    assert whole == dataset_hash(samples)
    assert whole == dataset_hash([replace(one, image_id=f"file {one.image_id}") for one in samples])
    for changed in (
        samples[::-1],
        samples[:1],
        [samples[0], replace(samples[1], question="r")],
        [samples[0], replace(samples[1], answers=["ab"])],
        [samples[0], solid("green", image_id="1", answers=("a", "b"))],
    ):
        assert dataset_hash(changed) != whole


def test_dataset_hash_opens_each_picture_once() -> None:
    dataset = open_dataset("scenes:3:8")
    opened: list[str] = []

    def counted(one: Sample) -> Sample:
        def open_image() -> Image.Image:
            opened.append(one.image_id)
            return one.image

        return replace(one, open_image=open_image)

    assert dataset_hash(counted(one) for one in dataset) == dataset_hash(dataset)
    assert opened == ["0", "1"]


def test_without_questions_each_picture_comes_once_with_its_folders_name(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/x/3.png", "4.png", ".hidden/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    samples = list(open_dataset(str(tmp_path)))
    assert [(sample.image_id, sample.question, sample.answers) for sample in samples] == [
        ("4.png", "", []),
        ("a/x/3.png", "", ["x"]),
        ("b/1.png", "", ["b"]),
        ("b/2.png", "", ["b"]),
    ]
    (tmp_path / "questions.txt").write_text("what is it?")
    assert {(sample.question, *sample.answers) for sample in open_dataset(str(tmp_path))} == {("what is it?",)}
