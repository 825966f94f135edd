"""Held-out samples: none that calibration saw, the same for the same seed, pictures opened once."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from edgevqa.calibration.search.held_out import held_out, keep_pictures
from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import CalibrationSpec, FileSpec

NO_FILE = FileSpec(path="x", sha256="0" * 64, size_bytes=0)


def calibrated(dataset: str, ids: list[str]) -> CalibrationSpec:
    return CalibrationSpec(
        variant="fp32",
        dataset=dataset,
        seed=0,
        samples=len(ids),
        sha256="0" * 64,
        question_ids=ids,
        warnings=[],
        summary=NO_FILE,
        observations=NO_FILE,
    )


def ids_of(samples: list[Sample]) -> list[str]:
    return [sample.question_id for sample in samples]


def test_what_calibration_saw_is_left_out() -> None:
    seen = [str(number) for number in range(60)]
    found = ids_of(held_out("scenes:3:100", calibrated("scenes:3:512", seen), seed=0))
    assert sorted(found, key=int) == [str(number) for number in range(60, 100)]


def test_questions_of_another_source_have_other_ids() -> None:
    seen = [str(number) for number in range(100)]
    assert len(held_out("scenes:4:100", calibrated("scenes:3:512", seen), seed=0)) == 100


def test_a_folder_is_known_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = "".join(f"a.png,what is number {number}?,yes\n" for number in range(30))
    (folder / "questions.csv").write_text(f"image,question,answer\n{lines}")
    seen = ids_of(list(open_dataset(str(folder))))[:10]
    assert len(held_out(str(folder), calibrated("mine", seen), seed=0)) == 20
    assert len(held_out(str(folder), calibrated("other", seen), seed=0)) == 30


def test_the_seed_decides_and_more_samples_begin_with_the_same() -> None:
    first = ids_of(held_out("scenes:3:200", None, seed=5, limit=20))
    assert ids_of(held_out("scenes:3:200", None, seed=5, limit=50))[:20] == first
    assert ids_of(held_out("scenes:3:200", None, seed=6, limit=20)) != first
    assert len(set(first)) == 20


def test_too_few_are_refused() -> None:
    seen = [str(number) for number in range(40)]
    with pytest.raises(InputError, match=r"has 4 questions that were not used for calibration \(of 44\)"):
        held_out("scenes:3:44", calibrated("scenes:3:40", seen), seed=0)


def test_pictures_are_opened_once_while_there_is_room() -> None:
    opened: list[str] = []

    def picture(name: str) -> Image.Image:
        opened.append(name)
        return Image.new("RGB", (10, 10))

    sample = held_out("scenes:3:20", None, seed=0)[0]
    samples = [dataclasses.replace(sample, image_id=name, open_image=partial(picture, name)) for name in "abca"]
    for kept in keep_pictures(samples, max_bytes=2 * 300) * 2:
        assert kept.image.size == (10, 10)
    assert opened == ["a", "b", "c", "c"]
